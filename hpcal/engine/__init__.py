"""The reconciler: campaign, plan, loop, dispatchers, tasks."""
