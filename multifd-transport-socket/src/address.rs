//! Addresses as QEMU writes them, and some it has no words for.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to listen or connect.
///
/// | text | what it is |
/// | --- | --- |
/// | `tcp:HOST:PORT` | a name, an IPv4 address, or an IPv6 address in brackets; an empty host is every address (listening), this machine (connecting) |
/// | `unix:PATH` | the path of a Unix socket |
/// | `unix:@NAME` | a Unix socket in Linux's abstract namespace: it has no permissions, whoever shares the network namespace can connect |
/// | `vsock:CID:PORT` | a virtual machine's context: a number, or `any`, `local`, `host` |
/// | `fd:N,...` | inherited descriptors: listening sockets, or connections, the main one first |
/// | `fd:systemd` | the listening sockets a service manager has passed (`LISTEN_FDS`) |
///
/// ```
/// use multifd_transport_socket::Address;
///
/// let address: Address = "tcp:[::1]:4444".parse()?;
/// assert_eq!(address, Address::Tcp { host: "::1".into(), port: 4444 });
/// assert_eq!(address.to_string(), "tcp:[::1]:4444");
/// assert!("4444".parse::<Address>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A host name or IP address, and a port.
    Tcp {
        /// Name, IPv4 or IPv6 address; empty means any address when listening, this machine when
        /// connecting.
        host: String,
        /// Port; 0 lets the system choose when listening.
        port: u16,
    },
    /// The path of a Unix stream socket.
    Unix(PathBuf),
    /// The name of a Unix stream socket in the abstract namespace, without the zero byte it begins
    /// with.
    Abstract(String),
    /// A vsock address.
    Vsock {
        /// The context: [`Address::VSOCK_ANY`] when listening for all of them.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// Descriptors this process has inherited (not those that are closed on `exec`). They are
    /// duplicated, never closed: a peer sees the end of such a connection when this process closes
    /// the number itself, or ends.
    Descriptors(Vec<i32>),
    /// The descriptors a service manager has passed to this process, by `LISTEN_PID` and
    /// `LISTEN_FDS`.
    Activated,
}

impl Address {
    /// The context of "any" in a vsock address.
    pub const VSOCK_ANY: u32 = u32::MAX;
}

/// Text that is no [`Address`], or no [`Source`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    text: String,
    why: &'static str,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, why } = self;
        write!(f, "{text:?} is no address: {why}")
    }
}

impl std::error::Error for AddressError {}

const FORMS: &str = "write tcp:HOST:PORT, unix:PATH, unix:@NAME, vsock:CID:PORT or fd:N";

fn tcp(rest: &str) -> Result<Address, &'static str> {
    let (host, port) = rest.rsplit_once(':').ok_or("the port is missing")?;
    let port = port
        .parse()
        .map_err(|_| "the port is no number up to 65535")?;
    let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(inner)) => inner,
        Some(None) => return Err("the bracket is not closed"),
        None if host.contains(':') => return Err("an IPv6 address needs brackets"),
        None => host,
    };
    Ok(Address::Tcp {
        host: host.into(),
        port,
    })
}

fn vsock(rest: &str) -> Result<Address, &'static str> {
    let (cid, port) = rest.split_once(':').ok_or("the port is missing")?;
    let cid = match cid {
        "any" => Address::VSOCK_ANY,
        "local" => 1,
        "host" => 2,
        number => number
            .parse()
            .map_err(|_| "the context is no number, nor any, local or host")?,
    };
    let port = port
        .parse()
        .map_err(|_| "the port is no number up to 4294967295")?;
    Ok(Address::Vsock { cid, port })
}

fn descriptors(rest: &str) -> Result<Address, &'static str> {
    if rest == "systemd" {
        return Ok(Address::Activated);
    }
    let numbers: Option<Vec<i32>> = rest
        .split(',')
        .map(|one| one.parse().ok().filter(|fd| *fd >= 0))
        .collect();
    let numbers = numbers.ok_or("a descriptor is no number (or the word systemd)")?;
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() < numbers.len() {
        return Err("a descriptor is there twice");
    }
    Ok(Address::Descriptors(numbers))
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let read = match text.split_once(':') {
            Some(("unix", "" | "@")) => Err("the path is missing"),
            Some(("unix", rest)) => Ok(match rest.strip_prefix('@') {
                Some(name) => Self::Abstract(name.into()),
                None => Self::Unix(rest.into()),
            }),
            Some(("tcp", rest)) => tcp(rest),
            Some(("vsock", rest)) => vsock(rest),
            Some(("fd", rest)) => descriptors(rest),
            _ => Err(FORMS),
        };
        read.map_err(|why| AddressError {
            text: text.into(),
            why,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::Vsock { cid, port } if *cid == Self::VSOCK_ANY => write!(f, "vsock:any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Descriptors(numbers) => {
                let list: Vec<_> = numbers.iter().map(ToString::to_string).collect();
                write!(f, "fd:{}", list.join(","))
            }
            Self::Activated => f.write_str("fd:systemd"),
        }
    }
}

/// Which way connections leave this machine.
///
/// ```
/// use multifd_transport_socket::Source;
///
/// assert_eq!("10.0.0.1".parse::<Source>()?, Source::Address("10.0.0.1".parse()?));
/// assert_eq!("eth1".parse::<Source>()?, Source::Interface("eth1".into()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// From an IP address of this machine.
    Address(IpAddr),
    /// By way of a network interface (`SO_BINDTODEVICE`).
    Interface(String),
}

impl FromStr for Source {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        // What Linux takes for an interface's name.
        let is_name = (1..16).contains(&text.len())
            && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if is_name {
            return Ok(Self::Interface(text.into()));
        }
        Err(AddressError {
            text: text.into(),
            why: "write an IP address of this machine, or an interface's name",
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Interface(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in [
            "tcp:127.0.0.1:4444",
            "tcp::0",
            "tcp:[fe80::1%eth0]:65535",
            "unix:/run/a:b",
            "unix:@a name",
            "vsock:any:4444",
            "vsock:3:4294967295",
            "fd:3",
            "fd:5,4,9",
            "fd:systemd",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("", "write tcp:"),
            ("tcp", "write tcp:"),
            ("rdma:host:1", "write tcp:"),
            ("tcp:host", "the port is missing"),
            ("tcp:host:65536", "the port is no number"),
            ("tcp:[::1:1", "the bracket"),
            ("tcp:::1:1", "needs brackets"),
            ("unix:", "the path is missing"),
            ("unix:@", "the path is missing"),
            ("vsock:3", "the port is missing"),
            ("vsock:x:1", "the context"),
            ("fd:", "no number"),
            ("fd:-1", "no number"),
            ("fd:3,3", "twice"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_source_is_an_address_or_an_interface() {
        for text in ["::1", "10.0.0.1", "eth0", "br-lan.7"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for text in ["", "a/b", "tcp:1", "sixteen-letters-", "a b"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
