"""The communication agent: serves `publish_content`, which publishes an article to a site, webhook, mail or WordPress.

A channel is a module with `check` and `publish`. All channels of a request are checked before the first is touched,
and a channel's failure stops no other. Each is idempotent by its key (the option `key`, else the slug): records under
STATE_DIR hold what was published, so a retry completes what is missing and changes nothing else.

    agent, publisher              the task; all channels of a request
    channel                       what a channel gets, its errors, keys and slugs
    site, pages                   the static site and its feed
    mail, webhook, wordpress      the other channels
    rendering, store              clean HTML of the article; locked and durable files
"""
