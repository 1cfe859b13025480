"""Questions about models and machines: info, compare, doctor, quality."""
