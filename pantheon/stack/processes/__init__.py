"""Child processes of the stack: started, tied to the supervisor's life, kept running, ended.

    launch      becomes a child: ties its life to the supervisor's, gives up root where asked, runs the program
    process     ManagedProcess, its start, log and end, and the proof that a process id still means it
    parts       what can be supervised, by stages: servers before the orchestrator before agents
    supervisor  restarts what dies, with backoff, and ends everything in the reverse order of the stages

States of a part: starting, ready, died (waiting for its restart), stopping, stopped. A part that was up for a while is
started again at once, one that keeps dying ever more slowly.

Invariants: no child outlives the supervisor, whatever kills it; a stop asks by a signal, waits its grace, and then
kills the whole process group; a process id is only signalled while its start time proves that it is still the same
process; a child's output goes to its log, never to the supervisor's streams.

Called by `pantheon.stack.up` and the servers of `pantheon.stack.servers`. It knows nothing of NATS or Postgres.
"""
