"""Memory that a fit takes: the estimate, and the micro-batch that fits a device."""
