"""`velm serve`: a trained model over HTTP, with limits on everything a client controls, and a web page."""
