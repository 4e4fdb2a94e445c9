//! A point in time, as the API writes it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: RFC 3339 in UTC with exactly six fractional digits, `2025-01-31T10:00:00.000000Z`.
///
/// Six digits and never more or fewer: it is what every database column keeps, so an entry that is read back is byte
/// for byte the entry that was written, and what every client's parser accepts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Timestamp);

const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

impl Time {
    /// The present, cut to whole microseconds.
    #[must_use]
    pub fn now() -> Self {
        Self::from(Timestamp::now())
    }

    /// The exact point in time.
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        self.0
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn as_microsecond(self) -> i64 {
        self.0.as_microsecond()
    }

    /// A time from microseconds since 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// When it lies outside the years -9999 to 9999.
    pub fn from_microsecond(microsecond: i64) -> Result<Self, jiff::Error> {
        Timestamp::from_microsecond(microsecond).map(Self)
    }
}

impl From<Timestamp> for Time {
    fn from(timestamp: Timestamp) -> Self {
        // Cutting the nanoseconds cannot leave the range of `Timestamp`; its minimum is a whole microsecond.
        Self(Timestamp::from_microsecond(timestamp.as_microsecond()).unwrap_or(timestamp))
    }
}

impl From<Time> for Timestamp {
    fn from(time: Time) -> Self {
        time.0
    }
}

impl FromStr for Time {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Timestamp>().map(Self::from)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&PRINTER.timestamp_to_string(&self.0))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Timestamp::deserialize(deserializer).map(Self::from)
    }
}

impl utoipa::PartialSchema for Time {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, Object, SchemaFormat, Type};
        Object::builder()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("RFC 3339 in UTC with six fractional digits."))
            .into()
    }
}

impl utoipa::ToSchema for Time {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_always_has_six_digits() {
        for (given, written) in [
            ("2025-01-31T10:00:00Z", "2025-01-31T10:00:00.000000Z"),
            ("2025-01-31T12:00:00.5+02:00", "2025-01-31T10:00:00.500000Z"),
            ("2025-01-31T10:00:00.123456789Z", "2025-01-31T10:00:00.123456Z"),
        ] {
            let time: Time = given.parse().unwrap();
            assert_eq!(serde_json::to_value(time).unwrap(), written);
            assert_eq!(serde_json::from_value::<Time>(written.into()).unwrap(), time);
            assert_eq!(Time::from_microsecond(time.as_microsecond()).unwrap(), time);
        }
        assert!("yesterday".parse::<Time>().is_err());
    }
}
