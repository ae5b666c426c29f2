//! The network between the nodes: a bridge in a namespace of its own, and machines on it that are no nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{NetNs, VethEnd};

/// A link that all machines share, `192.0.2.0/24` and `2001:db8::/64`.
#[derive(Debug)]
pub struct Underlay {
    netns: NetNs,
    mtu: u32,
}

/// A machine on the underlay with the interface `eth0`.
#[derive(Debug)]
pub struct Machine {
    pub netns: NetNs,
    /// The last byte of its addresses.
    pub number: u8,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    pub mac: [u8; 6],
    pub ifindex: u32,
}

impl Underlay {
    /// `mtu` in bytes.
    ///
    /// # Errors
    ///
    /// When namespaces or bridges cannot be made.
    pub fn new(mtu: u32) -> Result<Self> {
        let netns = NetNs::new()?;
        netns.ip(&format!(
            "link add br0 mtu {mtu} type bridge\nlink set br0 up"
        ))?;
        Ok(Self { netns, mtu })
    }

    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The namespace of the bridge: every frame between machines passes it.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Adds a machine with the addresses `192.0.2.number` and `2001:db8::number`.
    ///
    /// # Errors
    ///
    /// When the number is taken.
    pub fn machine(&self, number: u8) -> Result<Machine> {
        let netns = NetNs::new()?;
        let mac = [0x02, 0, 0xc0, 0, 0x02, number];
        let port = format!("port{number}");
        NetNs::veth(
            VethEnd {
                netns: &netns,
                name: "eth0",
                mac,
            },
            VethEnd {
                netns: &self.netns,
                name: &port,
                mac: [0x02, 0, 0xc0, 0, 0x03, number],
            },
            self.mtu,
        )?;
        self.netns.ip(&format!("link set {port} master br0"))?;
        let (ipv4, ipv6) = (Self::ipv4(number), Self::ipv6(number));
        netns.ip(&format!(
            "addr add {ipv4}/24 dev eth0\n\
             addr add {ipv6}/64 dev eth0 nodad"
        ))?;
        let ifindex = netns.ifindex("eth0")?;
        Ok(Machine {
            netns,
            number,
            ipv4,
            ipv6,
            mac,
            ifindex,
        })
    }

    pub fn ipv4(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, number)
    }

    pub fn ipv6(number: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())
    }
}

impl Machine {
    /// Runs `work` on the machine.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work)
    }

    /// Its address in the family of `other`.
    pub fn ip_for(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() {
            self.ipv4.into()
        } else {
            self.ipv6.into()
        }
    }
}
