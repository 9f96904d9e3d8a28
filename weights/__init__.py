"""Files of others: where they are fetched from, and readers that run nothing and believe nothing."""
