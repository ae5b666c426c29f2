//! How much a pod may send and receive: a token bucket in front of each side of its link (tc-tbf(8)), in the kernel.
//!
//! What the pod receives waits before the host's side, what it sends before its own: there its sockets feel the queue
//! and slow down, where a limit behind the link could only drop. Who may administer the pod's network (CAP_NET_ADMIN)
//! can thus take away what it may send.

use futures::StreamExt;
use rtnetlink::{
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle, TcMessage, TcOption},
    },
};

use crate::{
    Network, NetworkError,
    netlink::{Link, errno, failed},
};

/// What the kernel calls a token bucket.
pub(crate) const TOKEN_BUCKET: &str = "tbf";
/// Runtimes that must name a burst and have none say the largest number of 31 or 32 bits.
const NO_BURST: u64 = i32::MAX as u64;
/// Longest time that a packet waits, as in the reference plugin: what is more is dropped, which slows TCP down.
const LATENCY_MS: u64 = 25;
/// The bucket that we choose holds what passes in this time.
const BURST_MS: u64 = 50;
/// A bucket that holds less would let packets of TCP pass only after the kernel has cut them, and large ones not at all.
const LEAST_BURST: u64 = 64 << 10;

/// A limit, in bits a second and bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    pub bits_per_second: u64,
    /// What may pass at once after a pause; chosen by the rate if absent.
    pub burst_bits: Option<u64>,
}

/// The limits of a pod, as the pod sees them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bandwidth {
    /// What it receives.
    pub ingress: Option<Rate>,
    /// What it sends.
    pub egress: Option<Rate>,
}

impl Rate {
    /// Bytes a second; at least one.
    fn bytes(self) -> u64 {
        (self.bits_per_second / 8).max(1)
    }

    /// Bytes in the bucket.
    fn burst(self) -> u32 {
        let named = self.burst_bits.filter(|bits| *bits < NO_BURST);
        let burst = match named {
            Some(bits) => bits / 8,
            None => self.bytes() / 1000 * BURST_MS,
        };
        u32::try_from(burst.max(LEAST_BURST)).unwrap_or(u32::MAX)
    }

    /// Bytes that may wait.
    fn queue(self) -> u32 {
        let waiting = self.bytes().saturating_mul(LATENCY_MS) / 1000;
        u32::try_from(waiting.saturating_add(self.burst().into())).unwrap_or(u32::MAX)
    }

    /// `TCA_OPTIONS` of a token bucket (linux/pkt_sched.h).
    fn options(self) -> Vec<TcOption> {
        const PARAMETERS: u16 = 1;
        const RATE64: u16 = 4;
        const BURST: u16 = 6;
        // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
        let rate = u32::try_from(self.bytes()).unwrap_or(u32::MAX);
        let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        parameters.extend(rate.to_ne_bytes());
        // No peak rate; then limit, buffer and MTU. The buffer is said in bytes apart.
        parameters.extend([0; 12]);
        parameters.extend(self.queue().to_ne_bytes());
        parameters.extend([0; 8]);
        [
            (PARAMETERS, parameters),
            (RATE64, self.bytes().to_ne_bytes().to_vec()),
            (BURST, self.burst().to_ne_bytes().to_vec()),
        ]
        .into_iter()
        .map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)))
        .collect()
    }
}

/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;

impl Network {
    /// Lets no more than `rate` leave by an interface; without one, takes away the limit that it had.
    pub(crate) async fn limit(&self, link: &Link, rate: Option<Rate>) -> Result<(), NetworkError> {
        let message = message(link.index, rate);
        match rate {
            None if link.queue.as_deref() != Some(TOKEN_BUCKET) => Ok(()),
            None => {
                let request = RouteNetlinkMessage::DelQueueDiscipline(message);
                match self.ask(request, 0).await {
                    Err(error) if errno(&error) == libc::ENOENT => Ok(()),
                    other => other.map_err(failed(format!("take the limit from {}", link.name))),
                }
            }
            Some(rate) => {
                let request = RouteNetlinkMessage::NewQueueDiscipline(message);
                let asked = self.ask(request, NLM_F_CREATE | NLM_F_REPLACE).await;
                asked.map_err(failed(format!(
                    "limit {} to {} bits a second (the kernel needs CONFIG_NET_SCH_TBF)",
                    link.name, rate.bits_per_second
                )))
            }
        }
    }

    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.clone().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

fn message(ifindex: u32, rate: Option<Rate>) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::ROOT;
    if let Some(rate) = rate {
        message.attributes = vec![
            TcAttribute::Kind(TOKEN_BUCKET.to_owned()),
            TcAttribute::Options(rate.options()),
        ];
    }
    message
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Emitable;

    use super::*;

    fn rate(bits_per_second: u64, burst_bits: Option<u64>) -> Rate {
        Rate {
            bits_per_second,
            burst_bits,
        }
    }

    #[test]
    fn a_bucket_that_nobody_chose_follows_the_rate_and_holds_a_large_packet() {
        assert_eq!(rate(80_000_000, None).burst(), 500_000);
        for no_burst in [i32::MAX as u64, u32::MAX as u64] {
            assert_eq!(rate(80_000_000, Some(no_burst)).burst(), 500_000);
        }
        assert_eq!(rate(1000, None).burst(), 65536);
        assert_eq!(rate(80_000_000, Some(8)).burst(), 65536);
        assert_eq!(rate(80_000_000, Some(8_000_000)).burst(), 1_000_000);
        assert_eq!(rate(1_000_000_000_000_000, None).burst(), u32::MAX);
        assert_eq!(rate(1_000_000_000_000_000, None).queue(), u32::MAX);
    }

    #[test]
    fn what_is_sent_to_the_kernel_has_the_kernels_shape() {
        let message = message(7, Some(rate(80_000_000_000, None)));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        // struct tcmsg, "tbf", then in TCA_OPTIONS 36 bytes of struct tc_tbf_qopt, 8 of the rate, 4 of the burst.
        assert_eq!(bytes.len(), 20 + 8 + 4 + (4 + 36) + (4 + 8) + (4 + 4));
        assert!(
            bytes
                .windows(8)
                .any(|eight| eight == 10_000_000_000_u64.to_ne_bytes())
        );
    }
}
