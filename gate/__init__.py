"""Which drafts go to the teacher: thresholds, calibrations, running gates, the verdict."""
