"""Reading a model's values while it trains: the panel, its scores and what is derived from them."""
