"""The studies behind the documentation's pages: every figure and number there is made here (`make reproduce`)."""
