// Magpie's POST /api/chat for Android: whole answers by Retrofit, streamed ones by OkHttp. See README.md beside this file.
package com.example.magpie

import java.io.IOException
import java.util.UUID
import java.util.concurrent.TimeUnit
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.serialization.SerializationException
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import okhttp3.MediaType.Companion.toMediaType
import okhttp3.OkHttpClient
import okhttp3.ResponseBody
import retrofit2.Response
import retrofit2.Retrofit
import retrofit2.converter.kotlinx.serialization.asConverterFactory
import retrofit2.http.Body
import retrofit2.http.Headers
import retrofit2.http.POST
import retrofit2.http.Streaming

@Serializable
data class Question(
    val user: String,
    val message: String,
    val conversation: String = "default",
    val id: String = UUID.randomUUID().toString(),
)

@Serializable
data class Answer(val id: String, val conversation: String, val reply: String)

@Serializable
data class Problem(val code: String, val message: String)

@Serializable
data class Failure(val error: Problem)

/** One event of a streamed answer: a piece of it, its end, or what went wrong. */
@Serializable
data class Event(
    val delta: String = "",
    val done: Boolean = false,
    val reply: String = "",
    val id: String = "",
    val conversation: String = "",
    val error: Problem? = null,
)

/** The bot declined or failed. [message] is a sentence for the person; decide by [code]. */
class ChatException(val status: Int, val code: String, message: String) : IOException(message)

interface ChatApi {
    @Headers("Accept: application/json")
    @POST("api/chat")
    suspend fun chat(@Body question: Question): Response<Answer>

    @Streaming
    @Headers("Accept: text/event-stream")
    @POST("api/chat")
    suspend fun stream(@Body question: Question): Response<ResponseBody>
}

/** [baseUrl] ends with a slash. [token] is asked for with every request: your own backend's session, see README.md. */
class Chat(baseUrl: String, token: () -> String) {
    private val json = Json {
        ignoreUnknownKeys = true
        encodeDefaults = true
    }
    private val http = OkHttpClient.Builder()
        .readTimeout(310, TimeUnit.SECONDS) // the bot holds a request up to 300 s
        .addInterceptor { chain ->
            chain.proceed(chain.request().newBuilder().header("Authorization", "Bearer ${token()}").build())
        }
        .build()
    private val api = Retrofit.Builder()
        .baseUrl(baseUrl)
        .client(http)
        .addConverterFactory(json.asConverterFactory("application/json".toMediaType()))
        .build()
        .create(ChatApi::class.java)

    /** The whole answer. Throws [ChatException]. */
    suspend fun ask(question: Question): Answer = again {
        val response = api.chat(question)
        response.body() ?: throw problem(response)
    }

    /** The answer so far, again and again, and at last the whole of it. Throws [ChatException]. */
    fun answer(question: Question): Flow<String> = flow {
        again {
            val response = api.stream(question)
            val body = response.body() ?: throw problem(response)
            var shown = ""
            for (event in events(body)) {
                event.error?.let { throw ChatException(response.code(), it.code, it.message) }
                shown = if (event.done) event.reply else shown + event.delta
                emit(shown)
                if (event.done) return@again
            }
            throw IOException("the answer broke off")
        }
    }.flowOn(Dispatchers.IO)

    private fun events(body: ResponseBody): Sequence<Event> = sequence {
        body.use {
            val source = it.source()
            while (true) {
                val line = source.readUtf8Line() ?: break
                if (line.startsWith("data: ")) yield(json.decodeFromString<Event>(line.removePrefix("data: ")))
            }
        }
    }

    private fun problem(response: Response<*>): ChatException {
        val text = response.errorBody()?.string().orEmpty()
        val problem = try {
            json.decodeFromString<Failure>(text).error
        } catch (e: SerializationException) {
            Problem("http_${response.code()}", "The bot cannot be reached at the moment.")
        }
        return ChatException(response.code(), problem.code, problem.message)
    }

    /** Try once more when the connection broke: the question's id makes that safe, nothing is paid for twice. */
    private suspend fun <T> again(attempt: suspend () -> T): T {
        repeat(TRIES - 1) { tries ->
            try {
                return attempt()
            } catch (e: ChatException) {
                throw e
            } catch (e: IOException) {
                delay(1_000L shl tries)
            }
        }
        return attempt()
    }

    private companion object {
        const val TRIES = 3
    }
}
