//! Addresses as QEMU writes them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to listen or connect: `tcp:HOST:PORT` or `unix:PATH`.
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
pub enum Address {
    /// A host name or IP address, and a port.
    Tcp {
        /// Name, IPv4 or IPv6 address; empty means any address when listening.
        host: String,
        /// Port; 0 lets the system choose when listening.
        port: u16,
    },
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

/// Text that is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    text: String,
    why: &'static str,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, why } = self;
        write!(
            f,
            "{text:?} is no address: {why}; write tcp:HOST:PORT or unix:PATH"
        )
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |why| AddressError {
            text: text.into(),
            why,
        };
        match text.split_once(':') {
            Some(("unix", "")) => Err(refuse("the path is missing")),
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp", rest)) => {
                let (host, port) = rest
                    .rsplit_once(':')
                    .ok_or_else(|| refuse("the port is missing"))?;
                let port = port
                    .parse()
                    .map_err(|_| refuse("the port is no number up to 65535"))?;
                let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
                    Some(Some(inner)) => inner,
                    Some(None) => return Err(refuse("the bracket is not closed")),
                    None if host.contains(':') => return Err(refuse("an IPv6 address needs brackets")),
                    None => host,
                };
                Ok(Self::Tcp {
                    host: host.into(),
                    port,
                })
            }
            _ => Err(refuse("it starts with neither")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
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
            "tcp:[fe80::1]:65535",
            "unix:/run/a:b",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "tcp",
            "tcp:host",
            "tcp:host:65536",
            "tcp:[::1:1",
            "tcp:::1:1",
            "unix:",
            "fd:3",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("write tcp:HOST:PORT or unix:PATH"), "{error}");
        }
    }
}
