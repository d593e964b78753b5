//! The configuration section: which machine this is, and what the source has switched on.

use crate::input::Input;
use crate::output::push_name;
use crate::sections::CONFIGURATION;
use crate::{Error, Limits};
use multifd_core::packet::Uuid;
use std::io::Read;

const SUBSECTION: u8 = 0x05;
const VERSION: u32 = 1;
const CAPABILITIES: &str = "configuration/capabilities";
const PAGE_BITS: &str = "configuration/target-page-bits";
const UUID: &str = "configuration/uuid";
/// Machines with pages of 8 KiB, which QEMU does not send: it is the only size of their processors.
const BIG_PAGES: [&str; 4] = ["sun4u", "sun4v", "niagara", "clipper"];
/// Most capabilities a list may name; QEMU 10 has about two dozen.
const MAX_CAPABILITIES: u32 = 256;
/// The capability of a migration whose pages lie at fixed offsets of a file.
pub(crate) const MAPPED_RAM: &str = "mapped-ram";

/// A subsection of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subsection {
    /// Capabilities a destination must have too; sent only when one of a few is on.
    Capabilities(Vec<String>),
    /// The guest's page size as a power of two, where the architecture leaves it open.
    TargetPageBits(u32),
    /// The VM's UUID, where one was given.
    Uuid(Uuid),
}

/// What the configuration section says: `u32 len | machine name | subsections`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// QEMU's name of the machine type, such as `pc-i440fx-10.0`; empty if the section is missing.
    pub machine: String,
    /// Subsections in the order in which they came.
    pub subsections: Vec<Subsection>,
}

impl Configuration {
    /// The configuration of a machine without any subsection.
    pub fn new(machine: &str) -> Self {
        Self {
            machine: machine.into(),
            subsections: Vec::new(),
        }
    }

    /// Bytes of a guest page: as the source says; where it does not, 8192 for the machines of SPARC
    /// and Alpha, whose page size is fixed, and 4096 for all others.
    pub fn page_size(&self) -> u32 {
        let bits = self.subsections.iter().find_map(|sub| match sub {
            Subsection::TargetPageBits(bits) => Some(*bits),
            _ => None,
        });
        let fixed = if BIG_PAGES.contains(&self.machine.as_str()) {
            8192
        } else {
            4096
        };
        bits.and_then(|bits| 1u32.checked_shl(bits))
            .unwrap_or(fixed)
    }

    /// The VM's UUID, if it was sent.
    pub fn uuid(&self) -> Option<Uuid> {
        self.subsections.iter().find_map(|sub| match sub {
            Subsection::Uuid(uuid) => Some(*uuid),
            _ => None,
        })
    }

    /// The capabilities that were sent; none for most migrations over sockets.
    pub fn capabilities(&self) -> &[String] {
        let found = self.subsections.iter().find_map(|sub| match sub {
            Subsection::Capabilities(list) => Some(list.as_slice()),
            _ => None,
        });
        found.unwrap_or_default()
    }

    /// Whether pages lie at fixed offsets of a file.
    pub fn is_mapped_ram(&self) -> bool {
        self.capabilities().iter().any(|name| name == MAPPED_RAM)
    }

    /// This configuration as it stands in a mapped-ram file, or as it goes over sockets.
    #[must_use]
    pub fn with_mapped_ram(&self, mapped: bool) -> Self {
        let mut subsections = self.subsections.clone();
        let mut list: Vec<String> = self.capabilities().to_vec();
        list.retain(|name| name != MAPPED_RAM);
        if mapped {
            list.push(MAPPED_RAM.into());
        }
        subsections.retain(|sub| !matches!(sub, Subsection::Capabilities(_)));
        if !list.is_empty() {
            // QEMU's order: page bits, capabilities, UUID.
            let at = subsections
                .iter()
                .position(|sub| matches!(sub, Subsection::Uuid(_)))
                .unwrap_or(subsections.len());
            subsections.insert(at, Subsection::Capabilities(list));
        }
        Self {
            machine: self.machine.clone(),
            subsections,
        }
    }

    /// Whether machines of this type sync at the end of every section and not only of every round:
    /// QEMU's types up to 8.0. `None` if the name does not tell.
    pub fn syncs_each_section(&self) -> Option<bool> {
        self.version().map(|version| version <= (8, 0))
    }

    /// Whether a QEMU of the age of this machine type knows zero pages in packets: from 9.0 on.
    /// `None` if the name does not tell.
    pub fn knows_zero_pages_in_packets(&self) -> Option<bool> {
        self.version().map(|version| version >= (9, 0))
    }

    /// The QEMU version the machine type is of, as far as its name tells: distributions have names
    /// of their own.
    fn version(&self) -> Option<(u32, u32)> {
        let (_, version) = self.machine.rsplit_once('-')?;
        let numbers = |text: &str| {
            let mut numbers = text.split('.').map(|number| number.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        };
        let ubuntu = [
            ("bionic", (2, 11)),
            ("focal", (4, 2)),
            ("jammy", (6, 2)),
            ("kinetic", (7, 0)),
            ("lunar", (7, 2)),
            ("mantic", (8, 0)),
            ("noble", (8, 2)),
            ("oracular", (9, 0)),
            ("plucky", (9, 2)),
        ];
        match version.strip_prefix("rhel") {
            // Red Hat's 9.2 is of QEMU 7.2, its 9.4 of 8.2, its 9.6 of 9.1.
            Some(rhel) => Some(match numbers(rhel)? {
                (..=8, _) | (9, ..=2) => (7, 2),
                (9, 3..=4) => (8, 2),
                _ => (9, 1),
            }),
            None => numbers(version).or_else(|| {
                let known = ubuntu.iter().find(|(name, _)| *name == version);
                known.map(|(_, version)| *version)
            }),
        }
    }

    /// Reads the section's body; returns it with the type byte of the element after it.
    pub(crate) fn read<R: Read>(
        input: &mut Input<R>,
        limits: &Limits,
    ) -> Result<(Self, u8), Error> {
        let offset = input.offset();
        let len = input.u32("the machine name's length")?;
        if len > limits.machine_name {
            return Err(Error::TooLarge {
                offset,
                what: "the machine name's length",
                found: len.into(),
                limit: limits.machine_name.into(),
            });
        }
        let machine = input.text(len as usize, "the machine name")?;
        let mut subsections = Vec::new();
        loop {
            let kind = input.u8("the element after the configuration")?;
            if kind != SUBSECTION {
                return Ok((
                    Self {
                        machine,
                        subsections,
                    },
                    kind,
                ));
            }
            let subsection = Self::read_subsection(input)?;
            let same = |other: &Subsection| {
                std::mem::discriminant(other) == std::mem::discriminant(&subsection)
            };
            if subsections.iter().any(same) {
                return Err(Error::Malformed {
                    offset: input.offset(),
                    what: "a configuration subsection",
                    found: "there a second time".into(),
                    expected: "each at most once".into(),
                });
            }
            subsections.push(subsection);
        }
    }

    fn read_subsection<R: Read>(input: &mut Input<R>) -> Result<Subsection, Error> {
        let offset = input.offset();
        let name = input.name("a configuration subsection's name")?;
        input.expect_u32("a configuration subsection's version", VERSION)?;
        match name.as_str() {
            CAPABILITIES => {
                let offset = input.offset();
                let count = input.u32("the number of capabilities")?;
                if count > MAX_CAPABILITIES {
                    return Err(Error::TooLarge {
                        offset,
                        what: "the number of capabilities",
                        found: count.into(),
                        limit: MAX_CAPABILITIES.into(),
                    });
                }
                let names = (0..count).map(|_| input.name("a capability's name"));
                Ok(Subsection::Capabilities(names.collect::<Result<_, _>>()?))
            }
            PAGE_BITS => {
                let offset = input.offset();
                let bits = input.u32("the target page bits")?;
                if !(9..=19).contains(&bits) {
                    return Err(Error::Malformed {
                        offset,
                        what: "the target page bits",
                        found: bits.to_string(),
                        expected: "9 to 19".into(),
                    });
                }
                Ok(Subsection::TargetPageBits(bits))
            }
            UUID => Ok(Subsection::Uuid(Uuid(input.bytes("the UUID")?))),
            _ => Err(Error::Refused {
                offset,
                what: format!("the configuration subsection {name:?}, which is not known"),
                advice: "this version knows capabilities, target-page-bits and uuid".into(),
            }),
        }
    }

    /// Appends the section, its type byte included.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.push(CONFIGURATION);
        out.extend(
            u32::try_from(self.machine.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        out.extend(self.machine.as_bytes());
        for subsection in &self.subsections {
            out.push(SUBSECTION);
            let head = |out: &mut Vec<u8>, name| {
                push_name(out, name);
                out.extend(VERSION.to_be_bytes());
            };
            match subsection {
                Subsection::Capabilities(list) => {
                    head(out, CAPABILITIES);
                    out.extend(u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes());
                    for name in list {
                        push_name(out, name);
                    }
                }
                Subsection::TargetPageBits(bits) => {
                    head(out, PAGE_BITS);
                    out.extend(bits.to_be_bytes());
                }
                Subsection::Uuid(uuid) => {
                    head(out, UUID);
                    out.extend(uuid.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<(Configuration, u8), Error> {
        Configuration::read(&mut Input::new(bytes, 0, None), &Limits::default())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            machine in "[ -~]{0,40}",
            list in proptest::collection::vec("[a-z-]{1,30}", 0..5),
            bits in proptest::option::of(9u32..=19),
            uuid in proptest::option::of(any::<[u8; 16]>()),
        ) {
            let mut configuration = Configuration::new(&machine);
            configuration.subsections.extend(bits.map(Subsection::TargetPageBits));
            configuration.subsections.push(Subsection::Capabilities(list));
            configuration.subsections.extend(uuid.map(|uuid| Subsection::Uuid(Uuid(uuid))));
            let mut bytes = Vec::new();
            configuration.write(&mut bytes);
            bytes.push(1);
            prop_assert_eq!(read(&bytes[1..]).unwrap(), (configuration, 1));
            for len in 1..bytes.len() {
                prop_assert!(read(&bytes[1..len]).is_err());
            }
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }

    #[test]
    fn mapped_ram_is_put_in_and_taken_out_in_its_place() {
        let mut plain = Configuration::new("pc-i440fx-10.0");
        plain.subsections.push(Subsection::Uuid(Uuid([7; 16])));
        let mapped = plain.with_mapped_ram(true);
        assert!(mapped.is_mapped_ram() && !plain.is_mapped_ram());
        assert!(matches!(
            mapped.subsections.as_slice(),
            [Subsection::Capabilities(_), Subsection::Uuid(_)]
        ));
        assert_eq!(mapped.with_mapped_ram(true), mapped);
        assert_eq!(mapped.with_mapped_ram(false), plain);
    }

    #[test]
    fn old_machine_types_sync_each_section() {
        for (machine, expected) in [
            ("pc-i440fx-8.0", Some(true)),
            ("pc-q35-7.2", Some(true)),
            ("pc-q35-8.1", Some(false)),
            ("pc-i440fx-10.0", Some(false)),
            ("virt-2.12", Some(true)),
            ("s390-ccw-virtio-8.0", Some(true)),
            ("pc-q35-rhel9.2.0", Some(true)),
            ("pc-i440fx-rhel7.6.0", Some(true)),
            ("pc-q35-rhel9.4.0", Some(false)),
            ("pc-i440fx-jammy", Some(true)),
            ("pc-q35-noble", Some(false)),
            ("microvm", None),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(
                Configuration::new(machine).syncs_each_section(),
                expected,
                "{machine}"
            );
        }
        let zero = |machine| Configuration::new(machine).knows_zero_pages_in_packets();
        assert_eq!(
            (zero("pc-q35-8.2"), zero("pc-q35-9.0"), zero("none")),
            (Some(false), Some(true), None)
        );
    }
}
