"""Run folders to one offline page."""
