//! Device sections cut apart: their bodies have no length on the wire, but QEMU's description adds
//! up to it, and names every field.

use crate::Tail;
use crate::sections::{EOF, FOOTER, FULL};
use serde::Deserialize;
use std::ops::Range;

/// One device section of a [`Tail`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSection {
    /// The section's name on the wire, such as `0000:00:01.0/piix3`.
    pub name: String,
    /// Which instance of it.
    pub instance: u32,
    /// The version of its layout.
    pub version: u32,
    /// Bytes of its body.
    pub size: u64,
}

/// A device section with what is in it.
#[derive(Debug, Clone)]
pub struct DeviceState {
    /// Its name, instance, version and size.
    pub section: DeviceSection,
    body: Vec<u8>,
    fields: Vec<NamedField>,
}

/// Where a field lies in a section's body.
#[derive(Debug, Clone)]
struct NamedField {
    name: String,
    bytes: Range<usize>,
}

impl DeviceState {
    /// The bytes of the first field of this name, of all elements if it is an array. Integers are
    /// big-endian.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        let field = self.fields.iter().find(|field| field.name == name)?;
        self.body.get(field.bytes.clone())
    }

    /// A field of 1, 2, 4 or 8 bytes, as an unsigned integer.
    pub fn number(&self, name: &str) -> Option<u64> {
        let bytes = self.field(name)?;
        matches!(bytes.len(), 1 | 2 | 4 | 8).then(|| {
            bytes
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        })
    }
}

impl Tail {
    /// The state that the guest was in when it was saved, in QEMU's words, if the device sections
    /// say it.
    pub fn run_state(&self) -> Option<String> {
        let states = self.states("globalstate")?;
        let name = states.first()?.field("runstate")?;
        let name = name.split(|&byte| byte == 0).next()?;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// The device sections in their order, if the description at the end is there and fits them
    /// byte for byte.
    pub fn sections(&self) -> Option<Vec<DeviceSection>> {
        Some(
            self.devices()?
                .into_iter()
                .map(|(section, ..)| section)
                .collect(),
        )
    }

    /// The device sections whose name is, or ends in a slash and, `name`, with their fields. `None`
    /// as for [`Tail::sections`].
    pub fn states(&self, name: &str) -> Option<Vec<DeviceState>> {
        let is = |found: &str| {
            found == name
                || found
                    .strip_suffix(name)
                    .is_some_and(|rest| rest.ends_with('/'))
        };
        let mut states = Vec::new();
        for (section, body, device) in self.devices()? {
            if is(&section.name) {
                let mut fields = Vec::new();
                device.fields(0, &mut fields);
                states.push(DeviceState {
                    section,
                    body: body.to_vec(),
                    fields,
                });
            }
        }
        Some(states)
    }

    fn devices(&self) -> Option<Vec<(DeviceSection, &[u8], Device)>> {
        let Description { devices } = serde_json::from_str(self.vmdesc()?).ok()?;
        let mut sections = Vec::with_capacity(devices.len());
        // The description names those that come before the RAM first.
        let (mut left, mut after) = (self.early(), Some(self.bytes()));
        for device in devices {
            if left.is_empty() {
                left = after.take().unwrap_or_default();
            }
            let (section, body) = cut(&mut left, &device)?;
            sections.push((section, body, device));
        }
        if left.is_empty() {
            left = after.take().unwrap_or_default();
        }
        (after.is_none() && left.first() == Some(&EOF)).then_some(sections)
    }
}

/// Cuts the section of a device off.
fn cut<'a>(left: &mut &'a [u8], device: &Device) -> Option<(DeviceSection, &'a [u8])> {
    let size = device.size()?;
    let [kind] = take(left)?;
    let id = take::<4>(left)?;
    let [len] = take(left)?;
    let name = left.split_off(..usize::from(len))?;
    let instance = u32::from_be_bytes(take(left)?);
    let version = u32::from_be_bytes(take(left)?);
    let body = left.split_off(..usize::try_from(size).ok()?)?;
    let [footer] = take(left)?;
    if kind != FULL || footer != FOOTER || take::<4>(left)? != id {
        return None;
    }
    let section = DeviceSection {
        name: String::from_utf8_lossy(name).into_owned(),
        instance,
        version,
        size,
    };
    Some((section, body))
}

fn take<const N: usize>(left: &mut &[u8]) -> Option<[u8; N]> {
    let (now, rest) = left.split_first_chunk::<N>()?;
    *left = rest;
    Some(*now)
}

#[derive(Deserialize)]
struct Description {
    devices: Vec<Device>,
}

/// A device, or a subsection of one; what does not count is not kept.
#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    vmsd_name: String,
    #[serde(default)]
    fields: Vec<Field>,
    #[serde(default)]
    subsections: Vec<Device>,
}

#[derive(Deserialize)]
struct Field {
    #[serde(default)]
    name: String,
    size: u64,
    #[serde(default = "one")]
    array_len: u64,
    #[serde(default, rename = "struct")]
    inner: Option<Device>,
    /// A temporary structure names its fields without a level between.
    #[serde(default)]
    fields: Vec<Field>,
}

fn one() -> u64 {
    1
}

impl Field {
    fn len(&self) -> Option<u64> {
        self.size.checked_mul(self.array_len)
    }
}

impl Device {
    /// Bytes of the body: the fields, and the subsections after them.
    fn size(&self) -> Option<u64> {
        let mut size = 0u64;
        for field in &self.fields {
            size = size.checked_add(field.len()?)?;
        }
        for subsection in &self.subsections {
            // Type byte, length byte, name, version.
            let name = subsection.vmsd_name.len() as u64;
            size = size
                .checked_add(6 + name)?
                .checked_add(subsection.size()?)?;
        }
        Some(size)
    }

    /// Where each field lies, those of structures after the structure itself. What a hostile
    /// description says of the inside of a structure may lie anywhere: reading it gives nothing
    /// then.
    fn fields(&self, start: usize, found: &mut Vec<NamedField>) {
        let mut at = walk(&self.fields, start, found);
        for subsection in &self.subsections {
            at = at.saturating_add(6 + subsection.vmsd_name.len());
            subsection.fields(at, found);
            at = at.saturating_add(subsection.size().map_or(usize::MAX, |size| size as usize));
        }
    }
}

fn walk(fields: &[Field], start: usize, found: &mut Vec<NamedField>) -> usize {
    let mut at = start;
    for field in fields {
        let end = at.saturating_add(field.len().map_or(usize::MAX, |len| len as usize));
        found.push(NamedField {
            name: field.name.clone(),
            bytes: at..end,
        });
        walk(&field.fields, at, found);
        if let Some(inner) = &field.inner {
            inner.fields(at, found);
        }
        at = end;
    }
    at
}
