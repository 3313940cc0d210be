"""What a merged model is scored on: data sets, requests, metrics and objectives (no torch)."""
