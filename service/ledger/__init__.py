"""A history that the operator cannot rewrite (DESIGN section 6). This version holds what happens before the tree."""
