"""Values: what the API says (objects), what this node is (node), what must happen (route)."""
