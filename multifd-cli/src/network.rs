//! How commands listen and connect: the options, and what is made of them.

use crate::failure::{Failure, doing};
use crate::options::{ClientTls, Deadlines, ServerTls, Show, YEAR};
use crate::report;
use crate::size::parse_size;
use clap::Args;
use multifd_transport_socket::{
    Address, Admission, Bandwidth, CongestionControl, IpNet, Refusal, SocketListener,
    SocketOptions, SocketTransport, Source,
};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How many connections are named that were turned away; a flood of them is not.
const NAMED: usize = 10;

/// Where to listen, and for whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct Entrance {
    /// Where to listen: tcp:HOST:PORT (port 0 lets the system choose), unix:PATH, unix:@NAME,
    /// vsock:CID:PORT, fd:N or fd:systemd; may be given several times
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Vec<Address>,
    /// Let only these peers in: an address, or a network as 10.0.0.0/8; may be given several times
    /// [default: any]
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    allow: Vec<IpNet>,
    /// Seconds to wait for a migration to begin [default: as long as it takes]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    wait: Option<u64>,
}

impl Entrance {
    /// Listens, and says where; warns loudly where anybody could come in.
    pub(crate) fn open(
        &self,
        options: SocketOptions,
        tls: &ServerTls,
        show: Show,
    ) -> Result<SocketListener, Failure> {
        let (tls, secret) = tls.load()?;
        let count = AtomicUsize::new(0);
        let named = move |refusal: &Refusal| match count.fetch_add(1, Ordering::Relaxed) {
            n if n < NAMED => report::note(&report::tame(&format!("turned away {refusal}"))),
            NAMED => report::note("turned away more than that; they are not named any more"),
            _ => {}
        };
        let mut admission = Admission::default()
            .tls(tls)
            .secret(secret)
            .networks(self.allow.clone());
        if !show.quiet {
            admission = admission.on_refusal(Arc::new(named));
        }
        let options = options.wait(self.wait.map(Duration::from_secs));
        let listener = SocketListener::bind_all(&self.listen, options, admission)
            .map_err(doing("listening"))?;
        if !show.quiet {
            for address in listener.addresses() {
                report::note(&format!("listening on {address}"));
            }
        }
        warn_if_exposed(&listener);
        Ok(listener)
    }
}

/// Says, even to those who asked for quiet, that anybody on the network can come in.
pub(crate) fn warn_if_exposed(listener: &SocketListener) {
    if listener.is_exposed() {
        report::note(
            "WARNING: listening beyond this machine without TLS: anyone who reaches this address can send memory, and anyone on \
             the path can read and change it (--tls-creds; SECURITY.md)",
        );
    }
}

/// Where to connect, and how fast.
#[derive(Debug, Clone, Args)]
pub(crate) struct Exit {
    /// Where to send it: tcp:HOST:PORT, unix:PATH, unix:@NAME, vsock:CID:PORT or fd:N,...; given
    /// several times, channels are spread over the addresses
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub(crate) to: Vec<Address>,
    /// Leave from this IP address or interface; given several times, channels are spread over them
    /// [default: as the system routes]
    #[arg(long, value_name = "SOURCE")]
    from: Vec<Source>,
    /// Send no more than so many bytes a second, over all channels: bytes, or with K, M, G
    /// [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    max_bandwidth: Option<u64>,
}

impl Exit {
    /// What connects.
    pub(crate) fn transport(
        &self,
        options: SocketOptions,
        tls: &ClientTls,
    ) -> Result<SocketTransport, Failure> {
        let (tls, secret) = tls.load(|| self.host())?;
        let mut addresses = self.to.iter().cloned();
        let Some(first) = addresses.next() else {
            return Err(Failure::Other("there is nowhere to connect to".into()));
        };
        let mut transport = addresses.fold(
            SocketTransport::new(first, options),
            SocketTransport::and_to,
        );
        for source in &self.from {
            transport = transport.from_source(source.clone());
        }
        if let Some(tls) = tls {
            transport = transport.with_tls(tls);
        }
        if let Some(secret) = secret {
            transport = transport.with_secret(secret);
        }
        if let Some(rate) = self.max_bandwidth {
            transport = transport.with_bandwidth(Bandwidth::limited(rate));
        }
        Ok(transport)
    }

    /// The host that a certificate has to be for.
    fn host(&self) -> Result<String, Failure> {
        let mut hosts = self.to.iter().map(|address| match address {
            Address::Tcp { host, .. } if !host.is_empty() => host.as_str(),
            _ => "localhost",
        });
        let first = hosts.next().unwrap_or("localhost");
        if hosts.any(|host| host != first) {
            return Err(Failure::Other(
                "the addresses have several hosts, and one certificate is to be for all of them: say for which name, with the \
                 option for the TLS host name"
                    .into(),
            ));
        }
        Ok(first.into())
    }
}

/// How sockets are set up.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Sockets")]
pub(crate) struct Tuning {
    #[command(flatten)]
    pub(crate) deadlines: Deadlines,
    /// Bytes of the kernel's buffer for sending, a connection [default: as the kernel fits it to
    /// the link; 256 KiB to this host]
    #[arg(long, value_name = "SIZE", value_parser = parse_buffer)]
    send_buffer: Option<u32>,
    /// Bytes of the kernel's buffer for receiving, a connection [default: as the kernel fits it to
    /// the link]
    #[arg(long, value_name = "SIZE", value_parser = parse_buffer)]
    recv_buffer: Option<u32>,
    /// TCP's congestion control, such as bbr [default: the system's; reno to this very host]
    #[arg(long, value_name = "NAME")]
    congestion: Option<CongestionControl>,
    /// Seconds without traffic after which TCP asks whether the peer is still there; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(..=32767))]
    keepalive: u64,
    /// Seconds for which TCP tries to send something again before it gives the connection up
    /// [default: the system's, some 15 minutes]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    user_timeout: Option<u64>,
}

impl Tuning {
    pub(crate) fn options(&self) -> SocketOptions {
        self.deadlines
            .socket()
            .send_buffer(self.send_buffer)
            .recv_buffer(self.recv_buffer)
            .congestion(self.congestion)
            .keepalive((self.keepalive > 0).then(|| Duration::from_secs(self.keepalive)))
            .user_timeout(self.user_timeout.map(Duration::from_secs))
    }
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| text.parse())
        .map_err(|_| "write an IP address, or a network as 10.0.0.0/8".into())
}

fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("nothing would ever move".into()),
        rate => Ok(rate),
    }
}

fn parse_buffer(text: &str) -> Result<u32, String> {
    match u32::try_from(parse_size(text)?) {
        Ok(bytes) if (1..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err("write 1 to 1G bytes".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_rates_and_buffers_are_read() {
        assert_eq!(parse_network("::1").unwrap().to_string(), "::1/128");
        assert_eq!(
            parse_network("10.0.0.0/8").unwrap().to_string(),
            "10.0.0.0/8"
        );
        assert!(parse_network("10.0.0.0/33").is_err());
        assert_eq!(parse_rate("10M"), Ok(10 << 20));
        assert!(parse_rate("0").is_err());
        assert_eq!(parse_buffer("4M"), Ok(4 << 20));
        assert!(parse_buffer("2G").is_err() && parse_buffer("0").is_err());
    }
}
