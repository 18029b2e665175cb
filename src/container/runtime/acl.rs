//! Whom a file lets in, by its permissions and its access control list, as acl(5) has it.
//!
//! The kernel could only be asked as that user, and a thread that becomes another user changes what the whole process may be
//! traced by. So the list is read: 4 bytes of version 2, then entries of 8 bytes (tag, permissions, id), as
//! `linux/posix_acl_xattr.h` has them.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;

/// To go through a directory, as a permission.
pub(super) const SEARCH: u16 = 1;

const ATTRIBUTE: &str = "system.posix_acl_access";
const VERSION: u32 = 2;

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// An access control list.
#[derive(Debug)]
pub(super) struct List(Vec<Entry>);

/// The list of a file; `None` when its permissions say all.
pub(super) fn of(path: &Path) -> io::Result<Option<List>> {
    // The kernel's own limit of an attribute.
    let mut value = vec![0; 65536];
    match rustix::fs::getxattr(path, ATTRIBUTE, &mut value) {
        Ok(length) => {
            value.truncate(length);
            List::parse(&value).map(Some).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "no access control list of version 2",
                )
            })
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What the permissions alone allow user and group.
pub(super) fn mode_lets(file: &Metadata, (uid, gid): (i64, i64), wanted: u16) -> bool {
    let shift = match () {
        () if i64::from(file.uid()) == uid => 6,
        () if i64::from(file.gid()) == gid => 3,
        () => 0,
    };
    (file.mode() >> shift) & u32::from(wanted) == u32::from(wanted)
}

impl List {
    fn parse(value: &[u8]) -> Option<Self> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        let (entries, rest) = entries.as_chunks::<8>();
        if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
            return None;
        }
        let entry = |[t0, t1, p0, p1, id @ ..]: &[u8; 8]| Entry {
            tag: u16::from_le_bytes([*t0, *t1]),
            permissions: u16::from_le_bytes([*p0, *p1]),
            id: u32::from_le_bytes(*id),
        };
        Some(Self(entries.iter().map(entry).collect()))
    }

    /// What it allows user and group, who has no other groups.
    pub(super) fn lets(&self, file: &Metadata, ids: (i64, i64), wanted: u16) -> bool {
        self.allows((file.uid().into(), file.gid().into()), ids, wanted)
    }

    fn allows(&self, owners: (i64, i64), (uid, gid): (i64, i64), wanted: u16) -> bool {
        let of = |tag: u16| self.0.iter().filter(move |entry| entry.tag == tag);
        let has = |permissions: u16| permissions & wanted == wanted;
        let mask = of(MASK).next().map_or(u16::MAX, |entry| entry.permissions);
        let masked = |entry: &Entry| has(entry.permissions & mask);
        if owners.0 == uid {
            return of(OWNER).any(|entry| has(entry.permissions));
        }
        if let Some(user) = of(USER).find(|entry| i64::from(entry.id) == uid) {
            return masked(user);
        }
        let owning = of(OWNING_GROUP).filter(|_| owners.1 == gid);
        let named = of(GROUP).filter(|entry| i64::from(entry.id) == gid);
        let mut groups = owning.chain(named).peekable();
        match groups.peek() {
            Some(_) => groups.any(masked),
            None => of(OTHER).any(|entry| has(entry.permissions)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> List {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        List::parse(&value).unwrap()
    }

    #[test]
    fn the_first_entry_that_fits_decides() {
        const NOBODY: u32 = u32::MAX;
        let list = list(&[
            (OWNER, 7, NOBODY),
            (USER, 1, 100_000),
            (USER, 0, 100_001),
            (OWNING_GROUP, 0, NOBODY),
            (GROUP, 5, 200_000),
            (MASK, 1, NOBODY),
            (OTHER, 0, NOBODY),
        ]);
        let owners = (0, 0);
        for (ids, wanted, allowed) in [
            ((0, 0), 7, true),
            ((100_000, 9), SEARCH, true),
            // Not by its group either.
            ((100_001, 200_000), SEARCH, false),
            ((7, 200_000), SEARCH, true),
            // The mask takes it away.
            ((7, 200_000), 4, false),
            ((7, 0), SEARCH, false),
            ((7, 7), SEARCH, false),
        ] {
            assert_eq!(
                list.allows(owners, ids, wanted),
                allowed,
                "{ids:?} {wanted}"
            );
        }
    }

    #[test]
    fn what_is_no_list_is_told() {
        assert!(List::parse(&[]).is_none());
        assert!(List::parse(&1u32.to_le_bytes()).is_none());
        assert!(List::parse(&[2, 0, 0, 0, 1]).is_none());
        assert!(of(Path::new("/nonexistent")).is_err());
        let directory = tempfile::tempdir().unwrap();
        assert!(of(directory.path()).unwrap().is_none());
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(directory.path(), private).unwrap();
        let metadata = std::fs::metadata(directory.path()).unwrap();
        let (uid, gid) = (metadata.uid().into(), metadata.gid().into());
        assert!(mode_lets(&metadata, (uid, gid), SEARCH));
        assert!(!mode_lets(&metadata, (uid + 1, gid + 1), SEARCH));
    }
}
