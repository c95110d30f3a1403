"""Typed run configurations and the command lines made from them."""
