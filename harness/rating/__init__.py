"""People rate the answers of finished runs in a local web page, without knowing which run gave which answer."""
