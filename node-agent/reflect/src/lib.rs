//! node-agent-reflect
