//! What is measured, in which unit, and how often.

/// A figure of a way from the client to a backend. Smaller is better in each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Metric {
    /// Median latency of a request and its answer of 64 bytes on a kept TCP connection.
    RequestResponse,
    /// Median latency of `connect()`.
    Connect,
    /// Median time of a whole connection: `connect()`, a request, its answer, the server's close. Its reciprocal is
    /// the rate of connections.
    Transaction,
    /// CPU time of a packet of an established UDP flow, from where it enters into the backend pod; 64 bytes.
    PacketCpu,
    /// The same of 1,400 bytes.
    LargePacketCpu,
    /// The same of the first packet of a flow; 64 bytes.
    NewFlowCpu,
    /// The same of an established flow that is one of 60,000, each in its turn: what stands in no cache.
    ManyFlowsCpu,
    /// Time of a UDP packet of 64 bytes from socket to socket, in bursts that are waited for. Its reciprocal is the
    /// rate of packets.
    UdpPacket,
    /// Time of a KiB in a TCP stream with segmentation offload.
    StreamTime,
    /// The same without segmentation offload in the pods: each segment is a packet.
    UnsegmentedTime,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestResponse => "request_response_p50",
            Self::Connect => "connect_p50",
            Self::Transaction => "transaction_p50",
            Self::PacketCpu => "packet_cpu",
            Self::LargePacketCpu => "packet_cpu_1400",
            Self::NewFlowCpu => "new_flow_cpu",
            Self::ManyFlowsCpu => "packet_cpu_60000_flows",
            Self::UdpPacket => "udp_packet",
            Self::StreamTime => "stream_time",
            Self::UnsegmentedTime => "stream_time_no_gso",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::StreamTime | Self::UnsegmentedTime => "ns/KiB",
            _ => "ns",
        }
    }

    /// Rounds that make the noise row hold within half a percent on a quiet machine (streams: a few percent).
    pub fn rounds(self) -> usize {
        match self {
            Self::RequestResponse | Self::PacketCpu | Self::LargePacketCpu => 800,
            Self::Connect | Self::Transaction | Self::UdpPacket | Self::UnsegmentedTime => 600,
            // Times the slice's packets: as many flows as there are source ports.
            Self::NewFlowCpu => 280,
            Self::ManyFlowsCpu => 300,
            Self::StreamTime => 1200,
        }
    }

    /// Whether the cost is the CPU time of whoever puts packets in, without any socket.
    pub fn is_cpu(self) -> bool {
        matches!(
            self,
            Self::PacketCpu | Self::LargePacketCpu | Self::NewFlowCpu | Self::ManyFlowsCpu
        )
    }
}
