import java.time.Duration;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.core.DefaultKafkaProducerFactory;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.KafkaMessageListenerContainer;
import org.springframework.kafka.requestreply.ReplyingKafkaTemplate;
import org.springframework.kafka.requestreply.RequestReplyFuture;

/** Sends COUNT requests at once with Spring's ReplyingKafkaTemplate and prints each number beside its reply. */
public class SpringRequester {
    private static final int SECONDS = 40;

    /** Takes BOOTSTRAP REQUESTS RESPONSES GROUP COUNT. */
    public static void main(String[] arguments) throws Exception {
        var server = Map.<String, Object>of("bootstrap.servers", arguments[0]);
        var text = new StringSerializer();
        var producers = new DefaultKafkaProducerFactory<String, String>(server, text, text);
        // From the beginning: what others were answered is not taken for a reply.
        var reading = Map.<String, Object>of("bootstrap.servers", arguments[0], "auto.offset.reset", "earliest");
        var consumers =
            new DefaultKafkaConsumerFactory<>(reading, new StringDeserializer(), new StringDeserializer());
        var properties = new ContainerProperties(arguments[2]);
        properties.setGroupId(arguments[3]);
        var replies = new KafkaMessageListenerContainer<String, String>(consumers, properties);
        var template = new ReplyingKafkaTemplate<String, String, String>(producers, replies);
        template.setDefaultReplyTimeout(Duration.ofSeconds(SECONDS));
        template.setSharedReplyTopic(true);
        template.start();
        try {
            var waiting = new TreeMap<Integer, RequestReplyFuture<String, String, String>>();
            for (int number = 0; number < Integer.parseInt(arguments[4]); number++) {
                String request = "{\"number\": " + number + "}";
                waiting.put(number, template.sendAndReceive(new ProducerRecord<>(arguments[1], request)));
            }
            for (var each : waiting.entrySet()) {
                System.out.println(each.getKey() + "\t" + each.getValue().get(SECONDS, TimeUnit.SECONDS).value());
            }
        } finally {
            template.stop();
            template.destroy();
            producers.destroy();
        }
    }
}
