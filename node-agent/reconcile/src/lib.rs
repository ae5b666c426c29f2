//! node-agent-reconcile
