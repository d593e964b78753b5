//! How packets are encoded: the options, the method they make, and what came of an automatic
//! choice.

use crate::failure::Failure;
use crate::method::{AnyChoice, Choice};
use clap::Args;
use indicatif::HumanBytes;
use multifd_compress::{
    Auto, AutoReport, ChoiceReport, CompressPool, Qatzip, Qpl, Uadk, Zlib, Zstd,
};
use multifd_core::packet::Compression;
use multifd_core::{Checksums, Encode, IndependentPackets, Method, Plain, Workers};
use serde::Serialize;
use std::sync::Arc;

/// How packets are encoded.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Encoding {
    /// The compression; auto is for another multifd at the far end, as a QEMU takes one method only
    #[arg(long, value_name = "METHOD", default_value = "none", value_parser = AnyChoice)]
    pub(crate) compression: Choice,
    /// The compression's level: zlib 0 to 9, zstd 0 to 20, or auto for zstd; the others have none
    /// [default: 1]
    #[arg(long, value_name = "L", value_parser = parse_level)]
    pub(crate) level: Option<Level>,
    /// Threads that compress while the channels only send; 0: each channel compresses its own
    /// packets, as zlib always does [default: as many as there are processors, unless there are as
    /// many channels]
    #[arg(long, value_name = "N")]
    pub(crate) compress_threads: Option<u16>,
    /// Send checksums of packets and of their contents, not of the main connection, for another
    /// multifd; a QEMU does not mind
    #[arg(long)]
    pub(crate) checksum: bool,
}

/// A compression's level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// As asked for.
    Fixed(u8),
    /// Whatever finishes soonest.
    Auto,
}

/// Reads a level.
pub(crate) fn parse_level(text: &str) -> Result<Level, String> {
    match text {
        "auto" => Ok(Level::Auto),
        number => number
            .parse()
            .map(Level::Fixed)
            .map_err(|_| "a number from 0 to 20, or auto".into()),
    }
}

/// A method, the threads it runs on, and its report if it chooses by itself.
pub(crate) struct Encoder {
    how: How,
    auto: Option<Auto>,
}

/// Where packets are encoded.
enum How {
    OnChannels(Box<dyn Method>),
    OnPool(Box<dyn IndependentPackets>, Arc<dyn Workers>),
}

impl Encoding {
    /// The encoder, for a transfer over `channels` channels.
    pub(crate) fn encoder(self, channels: Option<u8>) -> Result<Encoder, Failure> {
        use Compression as C;
        let level = match (self.compression, self.level) {
            (_, None) => 1,
            (Choice::One(C::Zstd), Some(Level::Auto)) => 0,
            (Choice::One(C::Zlib | C::Zstd), Some(Level::Fixed(level))) => level,
            (Choice::Auto, Some(_)) => {
                return Err(Failure::Other(
                    "--compression auto chooses levels by itself; --level is for zlib and zstd"
                        .into(),
                ));
            }
            (compression, Some(level)) => {
                return Err(Failure::Other(format!(
                    "--level {} is for {}, and the compression is {}",
                    match level {
                        Level::Auto => "auto".into(),
                        Level::Fixed(level) => level.to_string(),
                    },
                    match level {
                        Level::Auto => "zstd",
                        Level::Fixed(_) => "zlib and zstd",
                    },
                    compression.name()
                )));
            }
        };
        let mut auto = None;
        let independent: Box<dyn IndependentPackets> = match self.compression {
            Choice::Auto => Box::new(auto.insert(Auto::mixed()).clone()),
            Choice::One(C::Zstd) if self.level == Some(Level::Auto) => {
                Box::new(auto.insert(Auto::zstd_level()).clone())
            }
            Choice::One(C::Zlib) => return self.on_channels(Box::new(Zlib::new(level)?)),
            Choice::One(C::Zstd) => Box::new(Zstd::new(level)?),
            Choice::One(C::Qpl) => Box::new(Qpl),
            Choice::One(C::Uadk) => Box::new(Uadk),
            Choice::One(C::Qatzip) => Box::new(Qatzip),
            // There is nothing to compute.
            Choice::One(_) => return self.on_channels(Box::new(Plain)),
        };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let few = channels.is_none_or(|channels| usize::from(channels) < processors);
        let threads = self
            .compress_threads
            .map_or(if few { processors } else { 0 }, usize::from);
        let how = if threads == 0 {
            How::OnChannels(independent)
        } else {
            How::OnPool(independent, Arc::new(CompressPool::new(threads)?))
        };
        Ok(Encoder { how, auto })
    }

    fn on_channels(self, method: Box<dyn Method>) -> Result<Encoder, Failure> {
        if self.compress_threads.unwrap_or(0) > 0 {
            return Err(Failure::Other(format!(
                "--compress-threads is for methods whose packets can be made by any thread; {} is not one",
                self.compression.name()
            )));
        }
        let how = How::OnChannels(method);
        Ok(Encoder { how, auto: None })
    }

    /// What carries checksums, from memory that nobody writes to.
    pub(crate) fn checksums(self) -> Checksums {
        if self.checksum {
            Checksums::AtRest
        } else {
            Checksums::Off
        }
    }
}

/// What an automatic choice came to.
#[derive(Debug, Serialize)]
pub(crate) struct Chosen {
    #[serde(rename = "chosen")]
    name: String,
    link_bytes_per_second: Option<f64>,
    threads: f64,
    choices: Vec<ChosenChoice>,
    #[serde(skip)]
    why: String,
}

#[derive(Debug, Serialize)]
struct ChosenChoice {
    name: String,
    packets: u64,
    guest_bytes: u64,
    wire_bytes: u64,
    expected_bytes_per_second: Option<f64>,
}

impl Encoder {
    /// How a sender encodes.
    pub(crate) fn encode(&self) -> Encode<'_> {
        match &self.how {
            How::OnChannels(method) => Encode::on_channels(method.as_ref()),
            How::OnPool(method, workers) => Encode::on_pool(method.as_ref(), Arc::clone(workers)),
        }
    }

    /// The method's name; "auto", if it chooses by itself.
    pub(crate) fn name(&self) -> &'static str {
        match (&self.auto, &self.how) {
            (Some(_), _) => "auto",
            (None, How::OnChannels(method)) => method.kind().name(),
            (None, How::OnPool(method, _)) => method.kind().name(),
        }
    }

    /// What was chosen, and why.
    pub(crate) fn chosen(&self) -> Option<Chosen> {
        let report = self.auto.as_ref()?.report();
        let choice = |choice: &ChoiceReport| ChosenChoice {
            name: name(choice.level),
            packets: choice.packets,
            guest_bytes: choice.guest_bytes,
            wire_bytes: choice.wire_bytes,
            expected_bytes_per_second: choice.expected.filter(|speed| speed.is_finite()),
        };
        Some(Chosen {
            name: name(report.level),
            link_bytes_per_second: report.link,
            threads: report.threads,
            choices: report.choices.iter().map(choice).collect(),
            why: why(&report),
        })
    }
}

impl Chosen {
    /// A sentence for people.
    pub(crate) fn line(&self) -> &str {
        &self.why
    }
}

fn name(level: Option<i32>) -> String {
    level.map_or("none".into(), |level| format!("zstd {level}"))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Rates for people to read.
fn speed(bytes: f64) -> String {
    if bytes.is_finite() {
        format!("{}/s", HumanBytes(bytes as u64))
    } else {
        "no limit".into()
    }
}

fn why(report: &AutoReport) -> String {
    let link = report
        .link
        .map_or("nothing waited for the link".into(), |link| {
            format!("the link takes {}", speed(link))
        });
    let expected = report.choices.iter().filter_map(|choice| {
        Some(format!(
            "{} {}",
            name(choice.level),
            speed(choice.expected?)
        ))
    });
    let expected: Vec<_> = expected.collect();
    let mut used: Vec<_> = report
        .choices
        .iter()
        .filter(|choice| choice.packets > 0)
        .collect();
    used.sort_by_key(|choice| std::cmp::Reverse(choice.packets));
    let used: Vec<_> = used
        .iter()
        .map(|choice| format!("{} packets by {}", choice.packets, name(choice.level)))
        .collect();
    format!(
        "chose {}: {link}, {:.1} threads compress; expected guest memory a second: {}; sent {}",
        name(report.level),
        report.threads,
        expected.join(", "),
        used.join(", "),
    )
}
