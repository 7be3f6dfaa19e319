{{/* Kubernetes' names have no underscores: llm_agent is llm-agent here, and itself everywhere else. */}}
{{- define "pantheon.name" -}}
{{ printf "%s-%s" .root.Release.Name (replace "_" "-" .name) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "pantheon.labels" -}}
{{ include "pantheon.selector" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "pantheon.selector" -}}
app.kubernetes.io/name: pantheon
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "pantheon.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.repository .name (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end }}

{{/* The keys of the Secret that a process reads, as files below /run/secrets/pantheon. */}}
{{- define "pantheon.secretVolume" -}}
- name: secrets
  secret:
    secretName: {{ .root.Values.secret.name }}
    defaultMode: 0440
    items:
    {{- range .keys }}
      - {key: {{ . | quote }}, path: {{ . | quote }}}
    {{- end }}
{{- end }}

{{/* A pod's own settings: nobody, nothing written but /tmp, no rights. */}}
{{- define "pantheon.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "pantheon.containerSecurity" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* The environment of every process of the mesh. */}}
{{- define "pantheon.environment" -}}
- {name: NATS_URL, value: {{ .Values.nats.url | quote }}}
{{- with .Values.nats.user }}
- {name: NATS_USER, value: {{ . | quote }}}
{{- end }}
{{- with .Values.secret.keys.natsPassword }}
- {name: NATS_PASSWORD_FILE, value: /run/secrets/pantheon/{{ . }}}
{{- end }}
{{- with .Values.secret.keys.natsCreds }}
- {name: NATS_CREDS, value: /run/secrets/pantheon/{{ . }}}
{{- end }}
{{- with .Values.consul.address }}
- {name: CONSUL_HTTP_ADDR, value: {{ . | quote }}}
{{- end }}
{{- with .Values.secret.keys.consulToken }}
- {name: CONSUL_HTTP_TOKEN_FILE, value: /run/secrets/pantheon/{{ . }}}
{{- end }}
- {name: DRAIN_GRACE_SECONDS, value: {{ .Values.drainGraceSeconds | quote }}}
- {name: HEALTH_PORT, value: "8080"}
- {name: LOG_LEVEL, value: {{ .Values.logLevel }}}
{{- end }}

{{/* Alive while it answers; ready while it can take tasks. Whoever waits for NATS is alive. */}}
{{- define "pantheon.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* What every pod of a Deployment has beside its containers. */}}
{{- define "pantheon.placement" -}}
serviceAccountName: {{ .root.Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add .root.Values.drainGraceSeconds 20 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "pantheon.selector" . | nindent 8 }}
{{- with .nodeSelector | default .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations | default .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Work of an agent that waits or is under way: rows that it was given, and rows that wait for one of its task types.
     Open roots are few and indexed (tasks_open); their steps are found by the primary key. */}}
{{- define "pantheon.waitingWork" -}}
select count(*) from tasks root join tasks task on task.root_task_id = root.root_task_id
where root.task_id = root.root_task_id and root.answered_at is null and root.status in ('running', 'compensating')
and (task.status = 'dispatched' and task.agent = '{{ .name }}'
or task.status = 'ready' and coalesce(task.pinned_agent, '{{ .name }}') = '{{ .name }}'
and task.task_type in ('{{ join "', '" .agent.taskTypes }}'))
{{- end }}
