"""Which claims of the papers reproduce: a page made from records."""
