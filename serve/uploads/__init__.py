"""Where clips come from: uploads, opened in a process of their own, and URIs that the operator allows."""
