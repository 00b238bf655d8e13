"""Total lag where one sweep in lag order does not do: both directions, and several modules in series."""
