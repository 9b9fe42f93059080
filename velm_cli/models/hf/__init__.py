"""Captions and answers by models of transformers that velm did not train."""
