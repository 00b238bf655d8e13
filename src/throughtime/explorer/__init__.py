"""The explorer: one offline HTML page that shows how the gates decide what happens to the gradient."""
