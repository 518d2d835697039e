package event

// The extensions by which KafkaSource says where in Kafka an event's record stands.
const (
	ExtKafkaPartition = "knativekafkapartition"
	ExtKafkaOffset    = "knativekafkaoffset"
)

// The extensions by which a dead letter says why its event was not delivered.
const (
	ExtErrorDestination = "knativeerrordest"
	ExtErrorCode        = "knativeerrorcode"
	ExtErrorData        = "knativeerrordata" // the answer's body, in base64
)
