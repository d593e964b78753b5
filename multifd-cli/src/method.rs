//! Compression methods on the command line.

use clap::builder::{PossibleValue, TypedValueParser};
use multifd_compress::{Qatzip, Qpl, Uadk, Zlib, Zstd};
use multifd_core::packet::Compression;
use multifd_core::{MemoryBudget, Method, Plain};
use std::ffi::OsStr;
use std::sync::Arc;

/// A choice of compression: one method, or whichever finishes soonest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// This method.
    One(Compression),
    /// No compression or a level of zstd, packet by packet.
    Auto,
}

impl Choice {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One(compression) => compression.name(),
            Self::Auto => "auto",
        }
    }
}

/// Reads a choice.
#[derive(Clone)]
pub(crate) struct AnyChoice;

/// Reads a method that a QEMU can be told to use: any but auto.
#[derive(Clone)]
pub(crate) struct OneMethod;

fn one_methods() -> impl Iterator<Item = PossibleValue> {
    let all = Compression::ALL.into_iter();
    all.map(|one| PossibleValue::new(one.name()).help(one.summary()))
}

fn choices() -> impl Iterator<Item = PossibleValue> {
    let auto = "No compression or a level of zstd for each packet, whichever finishes soonest";
    one_methods().chain([PossibleValue::new(Choice::Auto.name()).help(auto)])
}

/// Reads one of these names.
fn name(
    values: impl Iterator<Item = PossibleValue>,
    command: &clap::Command,
    arg: Option<&clap::Arg>,
    value: &OsStr,
) -> Result<String, clap::Error> {
    clap::builder::PossibleValuesParser::new(values).parse_ref(command, arg, value)
}

impl TypedValueParser for OneMethod {
    type Value = Compression;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Compression, clap::Error> {
        let name = name(one_methods(), command, arg, value)?;
        name.parse()
            .map_err(|_| clap::Error::new(clap::error::ErrorKind::InvalidValue).with_cmd(command))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(one_methods()))
    }
}

impl TypedValueParser for AnyChoice {
    type Value = Choice;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Choice, clap::Error> {
        let name = name(choices(), command, arg, value)?;
        Ok(name.parse().map_or(Choice::Auto, Choice::One))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(choices()))
    }
}

/// The methods that may be received: the one asked for, or all there are. Memory that decoders keep
/// is counted in `budget`.
pub(crate) fn decoders(only: Option<Choice>, budget: &MemoryBudget) -> Vec<Arc<dyn Method>> {
    let all: [Arc<dyn Method>; 6] = [
        Arc::new(Plain),
        Arc::new(Zlib::default()),
        Arc::new(Zstd::default().with_budget(budget.clone())),
        Arc::new(Qpl),
        Arc::new(Uadk),
        Arc::new(Qatzip),
    ];
    let accepted = |kind: Compression| match only {
        None => true,
        Some(Choice::Auto) => matches!(kind, Compression::None | Compression::Zstd),
        Some(Choice::One(one)) => kind == one,
    };
    all.into_iter().filter(|one| accepted(one.kind())).collect()
}
