"""All that is known of the client library's insides."""
