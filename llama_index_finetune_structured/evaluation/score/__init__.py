"""Raw answers and gold -> scores a field, rates, intervals."""
