//! node-agent-host
