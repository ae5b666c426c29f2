//! One namespace's rtnetlink connection, and the few operations that the rest of the crate is made of.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use futures::{StreamExt, TryStream, TryStreamExt};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{
            InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
            LinkMessage,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    },
};

use tokio::sync::Mutex;

use crate::{MacAddr, NetworkError};

/// The rtnetlink connection of the network namespace that the thread was in when it connected.
#[derive(Clone, Debug)]
pub struct Network {
    pub(crate) handle: Handle,
    /// The kernel runs one listing at a time on a socket and refuses a second one with EBUSY.
    listing: Arc<Mutex<()>>,
}

/// One side of a veth pair that is to be created.
pub(crate) struct VethSide<'a> {
    pub name: &'a str,
    pub mac: MacAddr,
    /// Where the side is to live; `None` is the connection's own namespace.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// An interface as the kernel describes it.
#[derive(Debug)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<MacAddr>,
    pub mtu: u32,
    pub alias: Option<String>,
    /// The interface index of the other side of a veth pair, in the namespace of that side.
    pub peer_index: Option<u32>,
    pub is_veth: bool,
    /// What a VXLAN device is set to.
    pub vxlan: Option<Vec<InfoVxlan>>,
    /// The kind of its root queueing discipline.
    pub queue: Option<String>,
    /// Set up by an administrator, whatever the carrier says.
    pub is_up: bool,
}

impl Network {
    /// Connects to the namespace of the calling thread. Must be called inside a tokio runtime, which then drives the
    /// connection until the last clone is dropped.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Connect`] if the kernel gives no netlink socket.
    pub fn connect() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            listing: Arc::default(),
        })
    }

    /// Everything that a listing gives; `start` asks for it.
    pub(crate) async fn list<T, S>(
        &self,
        start: impl FnOnce(&Handle) -> S,
    ) -> Result<Vec<T>, rtnetlink::Error>
    where
        S: TryStream<Ok = T, Error = rtnetlink::Error>,
    {
        let _one_at_a_time = self.listing.lock().await;
        start(&self.handle).try_collect().await
    }

    pub(crate) async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let messages: Vec<LinkMessage> = self
            .list(|handle| handle.link().get().execute())
            .await
            .map_err(failed("list the interfaces"))?;
        Ok(messages.into_iter().map(Link::from).collect())
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let mut answers = self.handle.link().get().match_name(name).execute();
        match answers.next().await {
            Some(Ok(message)) => Ok(Some(message.into())),
            Some(Err(error)) if errno(&error) == libc::ENODEV => Ok(None),
            Some(Err(source)) => Err(failed(format!("get interface {name}"))(source)),
            None => Ok(None),
        }
    }

    /// Creates a veth pair; both sides exist in their namespaces or neither does.
    pub(crate) async fn add_veth(
        &self,
        side: &VethSide<'_>,
        peer: &VethSide<'_>,
        mtu: u32,
    ) -> Result<(), NetworkError> {
        let peer_message =
            with_side(LinkMessageBuilder::<LinkUnspec>::default(), peer, mtu).build();
        let message = with_side(
            LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth),
            side,
            mtu,
        )
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_message)))
        .build();
        let operation = || format!("create the veth pair {}, {}", side.name, peer.name);
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|source| failed(operation())(source))
    }

    /// Sets the MTU in bytes, optionally the alias, and sets the interface up.
    pub(crate) async fn set_up(
        &self,
        index: u32,
        mtu: u32,
        alias: Option<&str>,
    ) -> Result<(), NetworkError> {
        let mut message = LinkUnspec::new_with_index(index).mtu(mtu).up();
        if let Some(alias) = alias {
            message = message.append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned()));
        }
        self.handle
            .link()
            .set(message.build())
            .execute()
            .await
            .map_err(failed(format!(
                "set interface {index} up with an MTU of {mtu}"
            )))
    }

    /// Sets an interface up and changes nothing else.
    pub(crate) async fn set_only_up(&self, index: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("set interface {index} up")))
    }

    /// Deletes an interface; one that is gone already is no error.
    pub(crate) async fn delete_link(&self, index: u32) -> Result<(), NetworkError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == libc::ENODEV => Ok(()),
            other => other.map_err(failed(format!("delete interface {index}"))),
        }
    }

    /// Gives an interface exactly these addresses of global scope, each with a full-length prefix. IPv6 addresses are
    /// usable at once: duplicate address detection (RFC 4862, 5.4) is off for them.
    pub(crate) async fn set_addresses(
        &self,
        index: u32,
        wanted: &[IpAddr],
    ) -> Result<(), NetworkError> {
        let present = self.addresses(index).await?;
        for message in &present {
            let Some(address) = address_of(message) else {
                continue;
            };
            if !wanted.contains(&address) && !is_link_local(address) {
                let operation = failed(format!("remove address {address} from interface {index}"));
                self.handle
                    .address()
                    .del(message.clone())
                    .execute()
                    .await
                    .map_err(operation)?;
            }
        }
        for address in wanted {
            if present
                .iter()
                .filter_map(address_of)
                .any(|other| other == *address)
            {
                continue;
            }
            let length = if address.is_ipv4() { 32 } else { 128 };
            let mut request = self.handle.address().add(index, *address, length);
            if address.is_ipv6() {
                request
                    .message_mut()
                    .attributes
                    .push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await.map_err(failed(format!(
                "add address {address} to interface {index}"
            )))?;
        }
        Ok(())
    }

    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<AddressMessage>, NetworkError> {
        let start = |handle: &Handle| {
            let request = handle.address().get().set_link_index_filter(index);
            request.execute()
        };
        self.list(start)
            .await
            .map_err(failed(format!("list the addresses of interface {index}")))
    }

    /// The neighbours of an interface that were set for ever.
    pub(crate) async fn neighbours(&self, index: u32) -> Result<Vec<IpAddr>, NetworkError> {
        let messages: Vec<NeighbourMessage> = self
            .list(|handle| handle.neighbours().get().execute())
            .await
            .map_err(failed(format!("list the neighbours of interface {index}")))?;
        let permanent = messages.into_iter().filter(|message| {
            message.header.ifindex == index && message.header.state == NeighbourState::Permanent
        });
        let address = |message: NeighbourMessage| {
            let mut attributes = message.attributes.into_iter();
            attributes.find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(ip.into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(ip.into()),
                _ => None,
            })
        };
        Ok(permanent.filter_map(address).collect())
    }

    /// Makes `address` resolve to `mac` for ever, so that neither ARP nor NDP is sent for it.
    pub(crate) async fn set_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), NetworkError> {
        self.handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac.0)
            .replace()
            .execute()
            .await
            .map_err(failed(format!(
                "set the neighbour {address} of interface {index}"
            )))
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            alias: None,
            peer_index: None,
            is_veth: false,
            vxlan: None,
            queue: None,
            is_up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = MacAddr::from_slice(&bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Qdisc(kind) => link.queue = Some(kind),
                LinkAttribute::Link(index) => link.peer_index = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_veth = infos
                        .iter()
                        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                    link.vxlan = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Data(InfoData::Vxlan(settings)) => Some(settings),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

/// Names the operation that a netlink error belongs to.
pub(crate) fn failed(
    operation: impl Into<String>,
) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let operation = operation.into();
    move |source| NetworkError::Netlink { operation, source }
}

/// The positive error number of the kernel's answer; 0 if the error is of another kind.
pub(crate) fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().abs(),
        _ => 0,
    }
}

/// The address that a message is about: the local one, since on point-to-point links the other is the peer's.
pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn with_side<T>(
    builder: LinkMessageBuilder<T>,
    side: &VethSide<'_>,
    mtu: u32,
) -> LinkMessageBuilder<T> {
    let builder = builder
        .name(side.name.to_owned())
        .address(side.mac.0.to_vec())
        .mtu(mtu);
    match side.namespace {
        Some(namespace) => builder.setns_by_fd(namespace.as_raw_fd()),
        None => builder,
    }
}
