//! Options that several commands share, and how their values are read.

use crate::failure::Failure;
use crate::method::OneMethod;
use crate::size::parse_size;
use crate::store_args::Key;
use clap::{Args, ValueEnum};
use multifd_core::packet::Compression;
use multifd_qemu::file::SaveOptions;
use multifd_transport_file::{DirectIo, can_be_direct};
use multifd_transport_socket::{Address, Secret, SocketOptions, TlsClient, TlsServer};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How results and progress are shown.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Show {
    /// Print the result as one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress, no notes; only results and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// The longest deadline, in seconds.
pub(crate) const YEAR: u64 = 365 * 24 * 60 * 60;

/// Deadlines of connections.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Deadlines {
    /// Seconds to wait for a connection to be made
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub(crate) connect_timeout: u64,
    /// Seconds without a byte on any connection after which the peer is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub(crate) timeout: u64,
}

impl Deadlines {
    pub(crate) fn socket(self) -> SocketOptions {
        SocketOptions::default()
            .connect(Duration::from_secs(self.connect_timeout))
            .stall(Duration::from_secs(self.timeout))
    }
}

/// Whether page data goes past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Direct {
    /// Through the page cache
    Off,
    /// Past the page cache, or fail
    On,
    /// Past the page cache where the file system can
    Auto,
}

impl Direct {
    /// Whether a file that QEMU opens goes past the page cache.
    pub(crate) fn of(self, file: &File) -> bool {
        match self {
            Self::Off => false,
            Self::On => true,
            Self::Auto => can_be_direct(file),
        }
    }
}

impl From<Direct> for DirectIo {
    fn from(direct: Direct) -> Self {
        match direct {
            Direct::Off => Self::Off,
            Direct::On => Self::On,
            Direct::Auto => Self::IfPossible,
        }
    }
}

/// A file that holds a snapshot.
#[derive(Debug, Clone, Args)]
pub(crate) struct Image {
    /// The mapped-ram file, a save image of libvirt's (virsh save --image-format sparse), or a
    /// snapshot in a store: store:STORE#NAME
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where in the file the migration begins, in bytes [default: at its start; in a save image,
    /// where libvirt has put it]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) offset: Option<u64>,
    #[command(flatten)]
    pub(crate) key: Key,
}

/// How a snapshot's file is written.
#[derive(Debug, Clone, Copy, Args)]
#[allow(clippy::struct_excessive_bools)] // Switches of the command line.
pub(crate) struct Writing {
    /// Whether page data goes past the page cache
    #[arg(long, value_name = "WHEN", default_value = "off")]
    pub(crate) direct_io: Direct,
    /// Reserve disk space for all pages first; zero pages then take space, too
    #[arg(long)]
    pub(crate) preallocate: bool,
    /// Write no companion (FILE.crc) with checksums of the memory
    #[arg(long)]
    pub(crate) no_digest: bool,
    /// Replace the file if there is one, and its companion; only a regular file is ever replaced
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not compare the guest's RAM with what is free on the disk first; zero pages take no space
    #[arg(long)]
    pub(crate) no_space_check: bool,
}

impl Writing {
    /// As the library takes it.
    pub(crate) fn options(self) -> SaveOptions {
        SaveOptions::default()
            .replace(self.force)
            .digest(!self.no_digest)
            .direct(self.direct_io.into())
            .preallocate(self.preallocate)
    }
}

/// What the connecting side proves, and has proved to it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientTls {
    /// Speak TLS, with the certificates in this folder (ca-cert.pem; client-cert.pem and
    /// client-key.pem if the destination asks for them), as QEMU's tls-creds-x509 has them
    #[arg(long, value_name = "FOLDER")]
    pub(crate) tls_creds: Option<PathBuf>,
    /// The name the destination's certificate must be for [default: the host of its address]
    #[arg(long, value_name = "NAME", requires = "tls_creds")]
    pub(crate) tls_hostname: Option<String>,
    /// Show first that we know the secret in this file, to another multifd that has the same
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
}

impl ClientTls {
    /// What the transport needs, of what is asked for.
    pub(crate) fn load(
        &self,
        host: impl FnOnce() -> Result<String, Failure>,
    ) -> Result<(Option<TlsClient>, Option<Secret>), Failure> {
        let secret = secret(self.secret_file.as_deref())?;
        let Some(folder) = &self.tls_creds else {
            return Ok((None, secret));
        };
        let host = self.tls_hostname.clone().map_or_else(host, Ok)?;
        Ok((Some(TlsClient::from_folder(folder, &host)?), secret))
    }
}

/// What the listening side proves, and has proved to it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerTls {
    /// Speak TLS, with the certificates in this folder (server-cert.pem, server-key.pem,
    /// ca-cert.pem), as QEMU's tls-creds-x509 has them
    #[arg(long, value_name = "FOLDER")]
    pub(crate) tls_creds: Option<PathBuf>,
    /// Let sources in that have no certificate of our authority
    #[arg(long, requires = "tls_creds")]
    pub(crate) tls_any_client: bool,
    /// Let only sources in that know the secret in this file: another multifd that was given the
    /// same (a QEMU cannot)
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
}

impl ServerTls {
    /// What the listener needs, of what is asked for.
    pub(crate) fn load(&self) -> Result<(Option<TlsServer>, Option<Secret>), Failure> {
        let tls = self
            .tls_creds
            .as_ref()
            .map(|folder| TlsServer::from_folder(folder, !self.tls_any_client));
        Ok((tls.transpose()?, secret(self.secret_file.as_deref())?))
    }
}

/// Reads a shared secret, if there is to be one.
fn secret(file: Option<&Path>) -> Result<Option<Secret>, Failure> {
    Ok(file.map(Secret::from_file).transpose()?)
}

/// What a relay proves, and has proved to it, on either side.
#[derive(Debug, Clone, Args)]
pub(crate) struct RelayTls {
    /// Speak TLS with the source, with the certificates in this folder (server-cert.pem,
    /// server-key.pem, ca-cert.pem)
    #[arg(long, value_name = "FOLDER")]
    pub(crate) listen_tls_creds: Option<PathBuf>,
    /// Let sources in that have no certificate of our authority
    #[arg(long, requires = "listen_tls_creds")]
    pub(crate) listen_tls_any_client: bool,
    /// Let only sources in that know the secret in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) listen_secret_file: Option<PathBuf>,
    /// Speak TLS with the destination, with the certificates in this folder (ca-cert.pem;
    /// client-cert.pem and client-key.pem)
    #[arg(long, value_name = "FOLDER")]
    pub(crate) to_tls_creds: Option<PathBuf>,
    /// The name the destination's certificate must be for [default: the host of its address]
    #[arg(long, value_name = "NAME", requires = "to_tls_creds")]
    pub(crate) to_tls_hostname: Option<String>,
    /// Show the destination first that we know the secret in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) to_secret_file: Option<PathBuf>,
}

impl RelayTls {
    /// The side that listens.
    pub(crate) fn listening(&self) -> ServerTls {
        ServerTls {
            tls_creds: self.listen_tls_creds.clone(),
            tls_any_client: self.listen_tls_any_client,
            secret_file: self.listen_secret_file.clone(),
        }
    }

    /// The side that connects.
    pub(crate) fn connecting(&self) -> ClientTls {
        ClientTls {
            tls_creds: self.to_tls_creds.clone(),
            tls_hostname: self.to_tls_hostname.clone(),
            secret_file: self.to_secret_file.clone(),
        }
    }
}

/// Whether pages are sent without a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ZeroCopy {
    /// With a copy into the kernel
    Off,
    /// Without, or fail: TCP only; memory is locked while it is under way
    On,
    /// Without, as far as memory can be locked and the connection allows it
    Auto,
}

/// How to reach a QEMU.
#[derive(Debug, Clone, Args)]
pub(crate) struct Control {
    /// QEMU's QMP socket: a path, unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "SOCKET", value_parser = parse_qmp)]
    pub(crate) qmp: Address,
    /// By which way memory goes: auto, file, socket, or an address to meet at
    ///
    /// With file, QEMU writes or reads the file by itself (QEMU 9.0 and later, a QMP socket that is a
    /// Unix socket, no compression). With socket, memory goes over a Unix socket in a private folder.
    /// A QEMU that runs as another user cannot enter that: use tcp:127.0.0.1:0 for it. auto has QEMU
    /// read the file where it can, but not write it: QEMU 10.0 may crash if the disk fills up
    /// meanwhile.
    #[arg(long, value_name = "WAY", default_value = "auto")]
    pub(crate) via: Via,
    /// How many channels, or threads of QEMU [default: 4; 8 threads that read a file]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    channels: Option<u8>,
    /// The compression
    #[arg(long, value_name = "METHOD", default_value = "none", value_parser = OneMethod)]
    pub(crate) compression: Compression,
    /// Start the guest afterwards
    #[arg(long, conflicts_with = "stop")]
    pub(crate) resume: bool,
    /// Leave the guest stopped afterwards (after a snapshot in the state postmigrate; QEMU migrates
    /// it again only after it has run on)
    #[arg(long)]
    pub(crate) stop: bool,
}

impl Control {
    /// How many channels, or threads that write a file.
    pub(crate) fn channels(&self) -> u8 {
        self.channels.unwrap_or(4)
    }

    /// How many threads read a file into new memory: they wait for that memory more than for the
    /// processors.
    pub(crate) fn readers(&self) -> u8 {
        self.channels.unwrap_or(8)
    }
}

/// By which way memory goes between a QEMU and a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Via {
    /// The best that is possible.
    Auto,
    /// QEMU writes or reads the file.
    File,
    /// Over sockets: at an address, or at a private one.
    Socket(Option<Address>),
}

impl std::str::FromStr for Via {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "file" => Ok(Self::File),
            "socket" => Ok(Self::Socket(None)),
            address => match address.parse() {
                Ok(address) => Ok(Self::Socket(Some(address))),
                Err(error) => Err(format!(
                    "neither auto, file, socket nor an address: {error}"
                )),
            },
        }
    }
}

impl Via {
    /// Where to meet over sockets, if that was said.
    pub(crate) fn address(&self) -> Option<&Address> {
        match self {
            Self::Socket(address) => address.as_ref(),
            Self::Auto | Self::File => None,
        }
    }
}

/// What a destination understands, where the name of the machine type does not tell.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Dialect {
    /// When channels sync: once a round, or once a section, as QEMU's machine types up to 8.0 do
    /// [default: as the machine type does]
    #[arg(long, value_name = "WHEN")]
    pub(crate) sync: Option<Sync>,
    /// How zero pages go [default: as a QEMU of the machine type's age understands]
    #[arg(long, value_name = "HOW")]
    pub(crate) zero_pages: Option<ZeroPages>,
}

/// When channels sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sync {
    /// Once a round (multifd-flush-after-each-section=off)
    Round,
    /// Once a section (multifd-flush-after-each-section=on)
    Section,
}

/// How zero pages go, in QEMU's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ZeroPages {
    /// Named in packets: QEMU 9.0 and later
    Multifd,
    /// Named on the main connection
    Legacy,
    /// Like any other page
    None,
}

/// Memory that peers may make this process hold, beside guest RAM.
pub(crate) const MAX_MEMORY: &str = "256M";

/// A QMP socket: an address, or the path of a Unix socket.
fn parse_qmp(text: &str) -> Result<Address, String> {
    if text.starts_with("tcp:") || text.starts_with("unix:") {
        text.parse()
            .map_err(|e: multifd_transport_socket::AddressError| e.to_string())
    } else if text.is_empty() {
        Err("the path is missing".into())
    } else {
        Ok(Address::Unix(text.into()))
    }
}
