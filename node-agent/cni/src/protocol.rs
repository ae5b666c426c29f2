//! What plugin and agent say to each other: one request, one reply, then the end of the connection. The request may
//! bring a descriptor of the pod's network namespace along (`SCM_RIGHTS`, unix(7)).

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipnetwork::IpNetwork;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::{BandwidthLimits, CniError, PortMapping};

/// Where the agent listens unless somebody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/fairlead/cni.sock";

/// A request or reply is at most this long, in bytes.
const LONGEST: usize = 16 << 20;
/// Wiring a pod takes milliseconds; a thousand at once take seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// A container's interface in a network: the specification's key of an attachment.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Attachment {
    pub network: String,
    pub container_id: String,
    pub ifname: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Request {
    Add(Attachment, Wanted),
    Del(Attachment),
    Check(Attachment, Vec<IpAddr>),
    /// Everything of this network goes but these.
    Gc {
        network: String,
        valid: Vec<Attachment>,
    },
    Status,
}

/// What an attachment shall be.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Wanted {
    pub pod_namespace: String,
    pub pod_name: String,
    /// In bytes.
    pub mtu: Option<u32>,
    pub sysctls: BTreeMap<String, String>,
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    #[serde(default)]
    pub bandwidth: BandwidthLimits,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Done {
    Wired(Wired),
    Nothing,
}

pub type Reply = Result<Done, CniError>;

/// An attachment as it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Wired {
    pub host_ifname: String,
    pub host_mac: String,
    pub pod_mac: String,
    /// In bytes.
    pub mtu: u32,
    pub ips: Vec<WiredIp>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WiredIp {
    /// With the length of the podCIDR's prefix, as the reference plugins give it; the interface has a full-length one.
    pub address: IpNetwork,
    pub gateway: IpAddr,
}

impl Attachment {
    /// Who owns the addresses: no part can have a colon, so no two attachments are spelt alike.
    #[must_use]
    pub fn owner(&self) -> String {
        format!("{}:{}:{}", self.network, self.container_id, self.ifname)
    }

    /// The attachment that owns these addresses; `None` for owners of another kind.
    #[must_use]
    pub fn of_owner(owner: &str) -> Option<Self> {
        let parts: Vec<&str> = owner.split(':').collect();
        let [network, container_id, ifname] = parts[..] else {
            return None;
        };
        Some(Self {
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        })
    }
}

/// Asks the agent and waits for its reply.
///
/// # Errors
///
/// When the agent does not listen, does not answer in time, or answers what cannot be read.
pub fn ask(socket: &Path, request: &Request, netns: Option<BorrowedFd<'_>>) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let text = serde_json::to_vec(request)?;
    let sent = send_with(&stream, &text, netns)?;
    stream.write_all(&text[sent..])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(LONGEST as u64).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Sends as much of `bytes` as fits, with the descriptor; answers how much.
fn send_with(stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("there is no room for a descriptor"));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(sent)
}

/// Reads a whole request and its descriptor.
pub(crate) fn receive(stream: &UnixStream) -> io::Result<(Request, Option<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut netns = None;
    let mut chunk = vec![0; 64 << 10];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream.as_fd(),
            &mut [IoSliceMut::new(&mut chunk)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                netns = fds.last().or(netns);
            }
        }
        if received.bytes == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..received.bytes]);
        if bytes.len() > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    Ok((serde_json::from_slice(&bytes)?, netns))
}

pub(crate) fn answer(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(reply)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_longer_than_the_socket_holds_arrives_whole_with_its_descriptor() {
        let (here, there) = UnixStream::pair().unwrap();
        let valid = (0..20_000).map(|number| Attachment {
            network: "n".to_owned(),
            container_id: format!("{number:064}"),
            ifname: "eth0".to_owned(),
        });
        let request = Request::Gc {
            network: "n".to_owned(),
            valid: valid.collect(),
        };
        let text = serde_json::to_vec(&request).unwrap();
        assert!(text.len() > 1 << 20);
        let file = File::open("/proc/self/ns/net").unwrap();
        let inode = file.metadata().unwrap().ino();
        let sender = std::thread::spawn(move || {
            let mut here = here;
            let sent = send_with(&here, &text, Some(file.as_fd())).unwrap();
            here.write_all(&text[sent..]).unwrap();
        });
        let (received, netns) = receive(&there).unwrap();
        sender.join().unwrap();
        assert_eq!(received, request);
        assert_eq!(File::from(netns.unwrap()).metadata().unwrap().ino(), inode);
    }

    #[test]
    fn a_request_that_was_cut_off_is_none() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let text = serde_json::to_vec(&Request::Del(Attachment {
            network: "n".to_owned(),
            container_id: "c".to_owned(),
            ifname: "eth0".to_owned(),
        }))
        .unwrap();
        here.write_all(&text[..text.len() - 1]).unwrap();
        drop(here);
        assert!(receive(&there).is_err());
    }

    proptest! {
        #[test]
        fn owners_are_read_back_and_no_text_makes_it_panic(
            network in "[a-z0-9][a-zA-Z0-9_.-]{0,20}", container in "[a-z0-9][a-zA-Z0-9_.-]{0,64}",
            ifname in "[^:/ ]{1,15}", any in ".{0,60}")
        {
            let attachment = Attachment { network, container_id: container, ifname };
            prop_assert_eq!(Attachment::of_owner(&attachment.owner()), Some(attachment));
            let _ = Attachment::of_owner(&any);
        }
    }
}
