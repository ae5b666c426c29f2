//! node-agent-kubelet
