"""One hospital node: everything that touches a record or spends a privacy budget."""
