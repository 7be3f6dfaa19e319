"""The examination agent: reviews an article against its sources, its guidelines and good form."""
