//! node-agent-overlay
