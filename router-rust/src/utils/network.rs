//! IP networks in CIDR form.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: its first address and the length of the prefix that its addresses share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix: u32,
}

impl Network {
    /// Whether `address` lies in it. An IPv4 address written as IPv6 is another address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= self.prefix
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= self.prefix
            }
            _ => false,
        }
    }
}

/// The text is no network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a network")]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    /// Reads `10.0.0.0/8`, `10.0.0.0/255.0.0.0` and `10.0.0.1`; no bit behind the prefix may be set.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, length) = text
            .split_once('/')
            .map_or((text, None), |(a, l)| (a, Some(l)));
        let first: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let (width, free) = match first {
            IpAddr::V4(address) => (Ipv4Addr::BITS, address.to_bits().trailing_zeros()),
            IpAddr::V6(address) => (Ipv6Addr::BITS, address.to_bits().trailing_zeros()),
        };
        let prefix = match length {
            None => width,
            Some(length) => prefix_length(length, first.is_ipv4()).ok_or(NotANetwork)?,
        };
        if prefix > width || free < width - prefix {
            return Err(NotANetwork);
        }
        Ok(Self { first, prefix })
    }
}

fn prefix_length(text: &str, ipv4: bool) -> Option<u32> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let mask: Ipv4Addr = text.parse().ok().filter(|_| ipv4)?;
    let bits = mask.to_bits();
    let (ones, zeros) = (bits.leading_ones(), bits.leading_zeros());
    if bits.count_ones() == ones {
        return Some(ones);
    }
    // As routers of some makers write it: the bits that may differ.
    (bits.count_zeros() == zeros).then_some(zeros)
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first {
            IpAddr::V6(first) if first.to_ipv4_mapped().is_some() => {
                let [.., high, low] = first.segments();
                write!(formatter, "::ffff:{high:x}:{low:x}/{}", self.prefix)
            }
            first => write!(formatter, "{first}/{}", self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        text.parse::<Network>()
            .ok()
            .map(|network| network.to_string())
    }

    #[test]
    fn networks_are_read_in_cidr_form_and_with_masks() {
        assert_eq!(shown("10.0.0.0/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(shown("10.0.0.0/255.0.0.0").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(
            shown("10.0.0.0/0.255.255.255").as_deref(),
            Some("10.0.0.0/8")
        );
        assert_eq!(shown("127.0.0.1").as_deref(), Some("127.0.0.1/32"));
        assert_eq!(shown("0.0.0.0/0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(shown("2001:DB8:0:0::/32").as_deref(), Some("2001:db8::/32"));
        assert_eq!(
            shown("::ffff:1.2.3.4").as_deref(),
            Some("::ffff:102:304/128")
        );
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "10.0.0.1/8",
            "10/8",
            "10.0.0.0/33",
            "010.0.0.0/8",
            "10.0.0.0/",
            "x",
            "::1/64",
        ] {
            assert_eq!(shown(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_lies_in_a_network_of_its_own_version_only() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains("10.1.255.1".parse().unwrap()));
        assert!(!network.contains("10.2.0.1".parse().unwrap()));
        assert!(!network.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert!(
            "::/0"
                .parse::<Network>()
                .unwrap()
                .contains("::1".parse().unwrap())
        );
    }
}
