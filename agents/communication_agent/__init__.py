"""The agent that publishes finished articles: a static site, webhooks, e-mail, WordPress."""
