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
