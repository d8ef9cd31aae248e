"""Our own methods: steps that the server finds from what travels anyway."""
