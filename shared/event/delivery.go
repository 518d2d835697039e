package event

// The extensions in which KafkaSource gives the partition and the offset of an event's record.
const (
	ExtKafkaPartition = "knativekafkapartition"
	ExtKafkaOffset    = "knativekafkaoffset"
)

// The extensions in which a dead letter gives the reason of its failed delivery.
const (
	ExtErrorDestination = "knativeerrordest"
	ExtErrorCode        = "knativeerrorcode"
	ExtErrorData        = "knativeerrordata" // the body of the response, in base64
)

// ExtCutFrom is the extension with the length of a record's value in bytes, if its dead letter has
// only its beginning.
const ExtCutFrom = "pgwcutfrom"
